"""WritingBench (Wu et al. 2025, arXiv 2503.05244): criteria of each request, scored 1 to 10 one by one."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lwz_ray.benchmarks.means import GroupMeans, request_means
from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest, CriterionVerdict, Scores

REQUIREMENTS = ("style", "format", "length")


def score(benchmark: Benchmark, verdicts: Sequence[CriterionVerdict], resamples: int, seed: int) -> Scores:
    """Return the published scores, 1 to 10, each with its interval over requests.

    With r a request, its texts' scores by criterion c(r, i), and m(r) their mean:
        overall          mean of all c(r, i)
        domain1, domain2 mean of m(r) over the domain's requests
        requirement      mean of m(r) over the requests that have the requirement (the authors' R)
        requirement_c    mean of only those c(r, i) that are about the requirement (the authors' C)
    A criterion of a request with several samples is the mean over its samples first. Criteria without a verdict are
    in no mean: `num_missing` counts them among the requests that have any, `num_requests` those requests.
    Requirements are there where `benchmark.requirements` names the published subsets; else they are absent.
    """
    requests, places = benchmark.requests, benchmark.positions
    by_criterion: dict[tuple[int, str], list[int]] = defaultdict(list)
    for verdict in verdicts:
        place = places[verdict.request_id]
        by_criterion[place, verdict.criterion].append(_checked(requests[place], verdict))
    criterion = {key: sum(values) / len(values) for key, values in by_criterion.items()}
    means = request_means(len(requests), [place for place, _ in criterion], list(criterion.values()))
    groups = GroupMeans(len(requests))
    for (place, name), value in criterion.items():
        groups.add("overall", place, value)
        for requirement, about in requests[place].requirements.items():
            if name in about:
                groups.add(f"requirement_c\0{requirement}", place, value)
    for place, request in enumerate(requests):
        groups.add(f"language\0{request.language}", place, float(means[place]))
        for kind, label in request.labels.items():
            groups.add(f"{kind}\0{label}", place, float(means[place]))
        for requirement in request.requirements:
            groups.add(f"requirement\0{requirement}", place, float(means[place]))
    judged = {place for place, _ in criterion}
    overall: dict[str, Any] = _nested(groups.result(resamples, seed))
    overall["num_requests"] = len(judged)
    overall["num_missing"] = sum(len(requests[place].criteria) for place in judged) - len(criterion)
    return Scores({"writingbench": means}, overall)


def _checked(request: BenchmarkRequest, verdict: CriterionVerdict) -> int:
    if verdict.criterion not in {criterion.name for criterion in request.criteria}:
        raise ValueError(f"request {request.request_id} has no criterion {verdict.criterion!r}")
    if not 1 <= verdict.score <= 10:
        raise ValueError(f"criterion {verdict.criterion!r} of request {verdict.request_id}: {verdict.score} of 1 to 10")
    return verdict.score


def _nested(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return `overall` and, by kind of group, the groups in alphabetical order; requirements in the authors' order."""
    nested: dict[str, Any] = {"overall": found.get("overall")}
    for kind in ("domain1", "domain2", "language", "requirement", "requirement_c"):
        names = [key.partition("\0")[2] for key in found if key.partition("\0")[0] == kind]
        ordered = [name for name in REQUIREMENTS if name in names] if kind.startswith("requirement") else sorted(names)
        nested[kind] = {name: found[f"{kind}\0{name}"] for name in ordered}
    return nested
