"""Games in both orders: win, tie and loss per baseline, the judge's bias, ratings of several models in one fit."""

import pytest

from lwz_ray.benchmarks.arena_write import matchups, rate_together, score
from lwz_ray.benchmarks.records import Game
from tests.benchmark_parts import arena, written

BENCHMARK = arena("1", "2", "3")


def pair(request: str, baseline: str, first: float, second: float, model: str = "model") -> list[Game]:
    """Return both games of a pair: the model's score where it stood first, and where it stood second."""
    return [Game(request, 0, model, baseline, True, first), Game(request, 0, model, baseline, False, second)]


def test_every_text_meets_every_baseline_in_both_orders() -> None:
    found = list(matchups(BENCHMARK, [written("2", "mine"), written("2", "again", sample_index=1)], "model"))
    assert [(m.sample_index, m.baseline, m.first, m.second) for m in found] == [
        (0, "north", "mine", "north says 2"),
        (0, "north", "north says 2", "mine"),
        (0, "south", "mine", "south says 2"),
        (0, "south", "south says 2", "mine"),
        (1, "north", "again", "north says 2"),
        (1, "north", "north says 2", "again"),
        (1, "south", "again", "south says 2"),
        (1, "south", "south says 2", "again"),
    ]
    assert [m.model_first for m in found[:2]] == [True, False]
    with pytest.raises(ValueError, match="'north' is the name of a baseline"):
        list(matchups(BENCHMARK, [written("1", "mine")], "north"))


def test_scores_by_hand() -> None:
    games = [
        *pair("1", "north", 1.0, 1.0),  # won
        *pair("2", "north", 1.0, 0.0),  # the first text won twice: a tie
        *pair("3", "north", 0.5, 0.0),  # lost
        *pair("1", "south", 1.0, 0.5),  # won
        *pair("2", "south", 0.0, 0.0),  # lost
        *pair("3", "south", 0.5, 0.5)[:1],  # no verdict in one order
    ]
    found = score(BENCHMARK, games, "north", 1000.0, resamples=200, seed=3)
    overall = found.overall
    assert found.per_request["arena_write"].tolist() == [0.875, 0.25, 0.25]
    assert overall["arena_write"]["all"]["mean"] == pytest.approx(1.375 / 3)
    assert overall["by_baseline"]["north"]["pairs"] == {"win": 1, "tie": 1, "loss": 1}
    assert overall["by_baseline"]["north"]["games"] == {"win": 3, "tie": 1, "loss": 2}
    assert overall["by_baseline"]["north"]["score"]["mean"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert overall["by_baseline"]["south"]["pairs"] == {"win": 1, "tie": 0, "loss": 1}
    assert overall["num_pairs"] == 5
    assert overall["num_incomplete"] == 1
    # The first text's scores: 1, 0 | 1, 1 | 0.5, 1 | 1, 0.5 | 0, 1.
    assert overall["order"]["first_score"]["mean"] == pytest.approx(7 / 10)
    assert overall["order"]["same_verdict"]["mean"] == pytest.approx(2 / 5)
    assert overall["order"]["first_twice"]["mean"] == pytest.approx(1 / 5)
    assert overall["order"]["second_twice"]["mean"] == 0.0
    # 3.5 of 6 points against the anchor: 400 * log10(3.5 / 2.5) = 58.4512.
    ratings = overall["rating"]["ratings"]
    assert ratings["model"]["rating"] == pytest.approx(1058.4512, abs=1e-3)
    assert ratings["north"]["rating"] == 1000.0
    # South won 2.5 of 4: 400 * log10(2.5 / 1.5) = 88.7395 above the model.
    assert ratings["south"]["rating"] == pytest.approx(1147.1907, abs=1e-3)
    assert (overall["rating"]["anchor"], overall["rating"]["anchor_rating"]) == ("north", 1000.0)


def test_without_a_complete_pair_with_the_anchor_nothing_is_rated() -> None:
    found = score(BENCHMARK, pair("1", "south", 1.0, 0.0), "north", 1000.0, resamples=20, seed=3).overall
    assert found["rating"] == {"not_measured": "no pair with the anchor north was judged in both orders"}
    empty = score(BENCHMARK, [], "north", 1000.0, resamples=20, seed=3).overall
    assert empty["arena_write"]["all"] is None
    assert empty["order"] is None
    assert empty["by_baseline"]["north"] == {
        "pairs": {"win": 0, "tie": 0, "loss": 0},
        "games": {"win": 0, "tie": 0, "loss": 0},
        "score": None,
    }


def test_one_fit_for_several_models() -> None:
    ours = [*pair("1", "north", 1.0, 0.0), *pair("2", "south", 1.0, 0.0)]  # even with both
    theirs = [*pair("1", "north", 1.0, 0.0, "other"), *pair("2", "south", 1.0, 0.0, "other")]
    found = rate_together([ours, theirs], "north", 1200.0, resamples=20, seed=3)["ratings"]
    assert {k: v["rating"] for k, v in found.items()} == pytest.approx(dict.fromkeys(found, 1200.0))
    assert set(found) == {"model", "other", "north", "south"}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two games of model and north in one order, request 1"):
        score(BENCHMARK, [*pair("1", "north", 1.0, 0.0), *pair("1", "north", 0.0, 0.0)], "north", 1000.0, 10, 0)
    with pytest.raises(ValueError, match="games of one model"):
        score(BENCHMARK, [*pair("1", "north", 1, 1), *pair("1", "north", 1, 1, "other")], "north", 1000.0, 10, 0)
    with pytest.raises(ValueError, match=r"1, 0.5 or 0, not 0.7"):
        Game("1", 0, "model", "north", True, 0.7)
    with pytest.raises(ValueError, match="cannot play against itself"):
        Game("1", 0, "north", "north", True, 1.0)
