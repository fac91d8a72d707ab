"""Arena-Write (Wu et al. 2025, arXiv 2506.18841): texts beside those of known models, judged in both orders."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lwz_ray.benchmarks.means import GroupMeans, means_of, request_means
from lwz_ray.benchmarks.rating import rate, summary
from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest, Game, Scores
from lwz_ray.texts import WrittenText


@dataclass(frozen=True, slots=True)
class Matchup:
    """One game to be judged: two texts to one request, in one order."""

    request: BenchmarkRequest
    sample_index: int
    model: str
    baseline: str
    model_first: bool
    first: str
    second: str


def matchups(benchmark: Benchmark, texts: Sequence[WrittenText], model: str) -> Iterator[Matchup]:
    """Yield every game of a model: each of its texts against each baseline, in both orders.

    Raises ValueError where the model has the name of a baseline.
    """
    if model in benchmark.baselines:
        raise ValueError(f"{model!r} is the name of a baseline too: give the model another")
    places = benchmark.positions
    for text in texts:
        request = benchmark.requests[places[text.prompt_id]]
        for baseline, answers in benchmark.baselines.items():
            theirs = answers[request.request_id]
            for model_first in (True, False):
                first, second = (text.answer, theirs) if model_first else (theirs, text.answer)
                yield Matchup(request, text.sample_index, model, baseline, model_first, first, second)


def score(
    benchmark: Benchmark, games: Sequence[Game], anchor: str, anchor_rating: float, resamples: int, seed: int
) -> Scores:
    """Return win, tie and loss per baseline, the rating and the order bias of one model.

    A pair is a text beside a baseline's, played in both orders; its score is the mean of the two games, so that a
    judge who prefers a place gives both sides half. A pair of which one order has no verdict is left out of
    everything and counted in `num_incomplete`. `arena_write` is the mean score over pairs, 0 to 1, over all
    and by language and type. See `rating.fit` for what the rating rests on.
    """
    complete, incomplete = _pairs(games)
    if len({game.model for game in games}) > 1:
        raise ValueError(f"games of one model are needed, not of {sorted({game.model for game in games})}")
    places = benchmark.positions
    at = [places[one.request_id] for one, _ in complete]
    values = request_means(len(benchmark.requests), at, [(one.score + two.score) / 2 for one, two in complete])
    labels = {
        "language": [request.language for request in benchmark.requests],
        "type": [request.labels["type"] for request in benchmark.requests],
    }
    played = [game for pair in complete for game in pair]
    overall: dict[str, Any] = {
        **means_of({"arena_write": values}, labels, resamples, seed),
        "by_baseline": _by_baseline(benchmark, complete, resamples, seed),
        "order": _order(benchmark, complete, resamples, seed),
        "rating": _rating(played, anchor, anchor_rating, resamples, seed),
        "num_pairs": len(complete),
        "num_incomplete": incomplete,
    }
    return Scores({"arena_write": values}, overall)


def rate_together(
    games: Sequence[Sequence[Game]], anchor: str, anchor_rating: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the ratings of several models from all their games in one fit, as `score` returns one model's.

    One fit makes ratings comparable: baselines stand where the games of all models put them.
    """
    played = [game for of_model in games for pair in _pairs(of_model)[0] for game in pair]
    return _rating(played, anchor, anchor_rating, resamples, seed)


def _pairs(games: Sequence[Game]) -> tuple[list[tuple[Game, Game]], int]:
    """Return the pairs with both orders, the game with the model first at first, and how many have only one."""
    orders: dict[tuple[str, int, str, str], dict[bool, Game]] = defaultdict(dict)
    for game in games:
        key = (game.request_id, game.sample_index, game.model, game.baseline)
        if game.model_first in orders[key]:
            raise ValueError(f"two games of {game.model} and {game.baseline} in one order, request {game.request_id}")
        orders[key][game.model_first] = game
    complete = [(both[True], both[False]) for both in orders.values() if len(both) == 2]
    return complete, len(orders) - len(complete)


def _by_baseline(
    benchmark: Benchmark, pairs: Sequence[tuple[Game, Game]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return by baseline the counts of won, tied and lost pairs and games, and the mean score with its interval."""
    places, groups = benchmark.positions, GroupMeans(len(benchmark.requests))
    for one, two in pairs:
        groups.add(one.baseline, places[one.request_id], (one.score + two.score) / 2)
    means = groups.result(resamples, seed)
    found = {}
    for baseline in benchmark.baselines:
        mine = [pair for pair in pairs if pair[0].baseline == baseline]
        found[baseline] = {
            "pairs": _counts([(one.score + two.score) / 2 for one, two in mine]),
            "games": _counts([game.score for pair in mine for game in pair]),
            "score": means.get(baseline),
        }
    return found


def _counts(scores: Sequence[float]) -> dict[str, int]:
    return {
        "win": sum(score > 0.5 for score in scores),
        "tie": sum(score == 0.5 for score in scores),
        "loss": sum(score < 0.5 for score in scores),
    }


def _order(
    benchmark: Benchmark, pairs: Sequence[tuple[Game, Game]], resamples: int, seed: int
) -> dict[str, Any] | None:
    """Return how much the judge goes by the place of a text.

    `first_score` is the mean score of the text that stood first, 0.5 for a judge without bias; `same_verdict` the
    share of pairs in which both orders say the same; `first_twice` and `second_twice` the shares in which one
    place won both. Each with its interval; None without a pair.
    """
    places, groups = benchmark.positions, GroupMeans(len(benchmark.requests))
    for one, two in pairs:
        at = places[one.request_id]
        groups.add("first_score", at, (one.score + 1.0 - two.score) / 2)
        groups.add("same_verdict", at, float(one.score == two.score))
        groups.add("first_twice", at, float(one.score == 1.0 and two.score == 0.0))
        groups.add("second_twice", at, float(one.score == 0.0 and two.score == 1.0))
    return groups.result(resamples, seed) or None


def _rating(games: Sequence[Game], anchor: str, anchor_rating: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return the ratings, or {"not_measured": reason} where no complete pair was played with the anchor."""
    if not any(anchor in (game.model, game.baseline) for game in games):
        return {"not_measured": f"no pair with the anchor {anchor} was judged in both orders"}
    return summary(rate(games, anchor, anchor_rating, resamples, seed), anchor, anchor_rating)
