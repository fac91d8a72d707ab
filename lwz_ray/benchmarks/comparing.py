"""Evaluations of one benchmark beside each other: paired bootstrap of two, a table of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwz_ray.errors import UserError
from lwz_ray.statistics import bootstrap_mean, paired_bootstrap


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The numbers of one model's texts by request; what an evaluation leaves for comparisons."""

    name: str
    """Of the model or run, as tables show it."""
    benchmark: str
    requests: Mapping[str, str]
    """Request id -> its digest, in the order of every array."""
    per_request: Mapping[str, np.ndarray]
    """float64 [num_requests] by name; NaN where a request has no such number."""
    judged: Mapping[str, str]
    """Names of those numbers that a judge gave -> which judge, with everything that its verdicts depend on."""

    @property
    def known(self) -> list[str]:
        """Return the names of the numbers that any request has: plans have no length where none was written."""
        return [name for name, values in self.per_request.items() if not np.isnan(values).all()]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON's own types; NaN becomes null."""
        return {
            "name": self.name,
            "benchmark": self.benchmark,
            "requests": dict(self.requests),
            "per_request": {k: [None if np.isnan(x) else float(x) for x in v] for k, v in self.per_request.items()},
            "judged": dict(self.judged),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], place: str) -> "Evaluation":
        """Return what `as_dict` was made from; `place` names it in the UserError that a wrong one raises."""
        try:
            arrays = {
                name: np.array([np.nan if x is None else x for x in values], dtype=np.float64)
                for name, values in data["per_request"].items()
            }
            found = cls(data["name"], data["benchmark"], dict(data["requests"]), arrays, dict(data["judged"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{place}: no evaluation ({type(error).__name__}: {error}); run stage=evaluate") from error
        wrong = [name for name, values in arrays.items() if values.size != len(found.requests)]
        if wrong:
            raise UserError(
                f"{place}: {wrong[0]} has other than {len(found.requests)} numbers; run stage=evaluate again"
            )
        return found


def compare(before: Evaluation, after: Evaluation, resamples: int, seed: int) -> dict[str, Any]:
    """Return after minus before by name, each with the paired bootstrap's 95% interval over requests.

    Only requests that both have a number for enter: `num_requests` says how many, `before` and `after` are the means
    over just those. What cannot be compared is in `not_compared` by name with the reason: another judge, a number that
    only one has.
    Raises UserError where the two are of different benchmarks, or of different versions of one.
    """
    _check_same(before, after)
    place_before = {key: i for i, key in enumerate(before.requests)}
    place_after = {key: i for i, key in enumerate(after.requests)}
    shared = [key for key in before.requests if key in place_after]
    rows_before, rows_after = [place_before[key] for key in shared], [place_after[key] for key in shared]
    found: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys([*before.known, *after.known]):
        reason = _incomparable(before, after, name)
        if reason is not None:
            reasons[name] = reason
            continue
        old, new = before.per_request[name][rows_before], after.per_request[name][rows_after]
        both = ~(np.isnan(old) | np.isnan(new))
        if not both.any():
            reasons[name] = "no request has it in both"
            continue
        found[name] = {
            "before": float(old[both].mean()),
            "after": float(new[both].mean()),
            "difference": paired_bootstrap(old[both], new[both], resamples, seed).as_dict(),
            "num_requests": int(both.sum()),
        }
    return {
        "benchmark": before.benchmark,
        "before": before.name,
        "after": after.name,
        "num_shared": len(shared),
        "scores": found,
        "not_compared": reasons,
    }


def side_by_side(evaluations: Sequence[Evaluation], resamples: int, seed: int) -> dict[str, Any]:
    """Return each evaluation's means with 95% intervals, and its difference to the first one.

    `scores` holds by name a list, one entry an evaluation: {mean, low, high, num_requests}, or None where it has no
    such number. `against_first` holds what `compare` says of each later evaluation.
    Raises UserError on fewer than two evaluations, on two of one name, and as `compare` does.
    """
    if len(evaluations) < 2:
        raise UserError(f"{len(evaluations)} evaluation to put side by side: at least two are needed")
    names = [evaluation.name for evaluation in evaluations]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two evaluations are called {twice!r}: give their runs different names (run.name)")
    against = [compare(evaluations[0], other, resamples, seed) for other in evaluations[1:]]
    keys = dict.fromkeys(key for evaluation in evaluations for key in evaluation.known)
    return {
        "benchmark": evaluations[0].benchmark,
        "names": names,
        "scores": {
            key: [_mean(evaluation.per_request.get(key), resamples, seed) for evaluation in evaluations] for key in keys
        },
        "judges": [dict(evaluation.judged) for evaluation in evaluations],
        "num_requests": [len(evaluation.requests) for evaluation in evaluations],
        "against_first": against,
    }


def _mean(values: np.ndarray | None, resamples: int, seed: int) -> dict[str, Any] | None:
    known = np.zeros(0) if values is None else values[~np.isnan(values)]
    if known.size == 0:
        return None
    return {**bootstrap_mean(known, resamples, seed).as_dict(), "num_requests": int(known.size)}


def _check_same(before: Evaluation, after: Evaluation) -> None:
    if before.benchmark != after.benchmark:
        raise UserError(
            f"{before.name} was evaluated on {before.benchmark}, {after.name} on {after.benchmark}: "
            "compare evaluations of one benchmark"
        )
    shared = before.requests.keys() & after.requests.keys()
    other = [key for key in before.requests if key in shared and before.requests[key] != after.requests[key]]
    if other:
        raise UserError(
            f"{before.name} and {after.name} were asked different things as request {other[0]} of {before.benchmark} "
            f"({len(other)} of {len(shared)} differ): evaluate both with one file"
        )
    if not shared:
        raise UserError(f"{before.name} and {after.name} share no request of {before.benchmark}: evaluate both alike")


def _incomparable(before: Evaluation, after: Evaluation, name: str) -> str | None:
    for one, other in ((before, after), (after, before)):
        if name not in one.known:
            return f"only {other.name} has it"
    if before.judged.get(name) != after.judged.get(name):
        judges = " and ".join(one.judged.get(name, "no judge") for one in (before, after))
        return f"judged differently: {judges}"
    return None
