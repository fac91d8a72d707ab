"""Means of scores by group, with bootstrap intervals over requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lwz_ray.statistics import bootstrap_ratios, percentile_interval


class GroupMeans:
    """Collects values of requests by group and takes each group's mean with its interval.

    A request may give several values to a group (criteria of one text): all count, and requests are drawn whole,
    because values of one request go up and down together.
    """

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}

    def add(self, group: str, request: int, value: float) -> None:
        """Count a value of the request at that place; NaN is no value and is left out."""
        if np.isnan(value):
            return
        if group not in self._sums:
            self._sums[group] = np.zeros(self._num_requests)
            self._counts[group] = np.zeros(self._num_requests)
        self._sums[group][request] += value
        self._counts[group][request] += 1

    def result(self, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
        """Return by group `mean`, `low` and `high` of its 95% interval, `num_requests` and `num_values`.

        The order is that in which groups were met; a group without a value is absent.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = np.stack([self._sums[name] for name in names], axis=1)
        counts = np.stack([self._counts[name] for name in names], axis=1)
        draws = bootstrap_ratios(sums, counts, resamples, seed)
        found: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(names):
            interval = percentile_interval(float(sums[:, i].sum() / counts[:, i].sum()), draws[:, i])
            found[name] = {
                **interval.as_dict(),
                "num_requests": int((counts[:, i] > 0).sum()),
                "num_values": int(counts[:, i].sum()),
            }
        return found


def means_of(
    per_request: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return by name the mean over all requests as `all`, and for each kind of label the means by label.

    per_request: float [num_requests] by name, NaN where a request has none. labels: kind -> label of each request.
    Returns {name: {"all": {…} or None, kind: {label: {…}}}}, each {…} as `GroupMeans.result` gives it; one set of
    draws serves all.
    """
    num = len(next(iter(per_request.values()))) if per_request else 0
    groups = GroupMeans(num)
    for name, values in per_request.items():
        for i, value in enumerate(values):
            groups.add(_key(name, "all", ""), i, float(value))
            for kind, of_request in labels.items():
                groups.add(_key(name, kind, of_request[i]), i, float(value))
    found = groups.result(resamples, seed)
    return {
        name: {"all": found.get(_key(name, "all", ""))}
        | {
            kind: {one: found[key] for one in dict.fromkeys(of_request) if (key := _key(name, kind, one)) in found}
            for kind, of_request in labels.items()
        }
        for name in per_request
    }


def _key(name: str, kind: str, label: str) -> str:
    return f"{name}\0{kind}\0{label}"


def request_means(num_requests: int, places: Sequence[int], values: Sequence[float]) -> np.ndarray:
    """Return the mean of each request's values: float64 [num_requests], NaN where it has none.

    A value that is NaN is left out. Each request counts once in what follows, however many samples it has.
    """
    sums, counts = np.zeros(num_requests), np.zeros(num_requests)
    for place, value in zip(places, values, strict=True):
        if not np.isnan(value):
            sums[place] += value
            counts[place] += 1
    return np.divide(sums, counts, out=np.full(num_requests, np.nan), where=counts > 0)
