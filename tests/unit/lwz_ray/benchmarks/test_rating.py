"""Bradley-Terry ratings against closed forms, against a plain optimiser, and where no finite rating exists."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.optimize import minimize

from lwz_ray.benchmarks.rating import Rated, fit, rate
from lwz_ray.benchmarks.records import Game


def table(players: list[str], games: Mapping[tuple[str, str], float]) -> np.ndarray:
    wins = np.zeros((len(players), len(players)))
    for (winner, loser), count in games.items():
        wins[players.index(winner), players.index(loser)] += count
    return wins


def test_two_players_by_hand() -> None:
    # 3 of 4 games won: 400 * log10(3) = 190.8485 points above the anchor.
    players = ["model", "north"]
    found = fit(players, table(players, {("model", "north"): 3, ("north", "model"): 1}), "north", 1000.0)
    assert found == pytest.approx({"model": 1190.848502, "north": 1000.0}, abs=1e-4)
    # Ten to one is 400 points, and which of the two is held does not change their distance.
    found = fit(players, table(players, {("model", "north"): 10, ("north", "model"): 1}), "model", 0.0)
    assert found == pytest.approx({"model": 0.0, "north": -400.0}, abs=1e-4)


def test_baselines_that_met_only_the_model_stand_relative_to_it() -> None:
    players = ["model", "north", "south"]
    wins = table(players, {("model", "north"): 1, ("north", "model"): 1, ("model", "south"): 1, ("south", "model"): 10})
    assert fit(players, wins, "north", 1000.0) == pytest.approx(
        {"model": 1000.0, "north": 1000.0, "south": 1400.0}, abs=1e-4
    )


def test_a_round_of_four_agrees_with_a_plain_optimiser() -> None:
    players = ["a", "b", "c", "d"]
    wins = np.array([[0, 7.5, 3, 9], [2.5, 0, 6, 4], [7, 4, 0, 8.5], [1, 6, 1.5, 0]])

    def loss(free: np.ndarray) -> float:
        strength = np.concatenate([[0.0], free])
        gaps = strength[:, None] - strength[None, :]
        return float((wins * np.logaddexp(0, -gaps)).sum())

    best = minimize(loss, np.zeros(3), tol=1e-12).x * 400 / math.log(10)
    found = fit(players, wins, "a", 1000.0)
    assert [found[p] - 1000.0 for p in "bcd"] == pytest.approx(best.tolist(), abs=0.01)


def test_who_won_or_lost_all_has_no_finite_rating() -> None:
    players = ["anchor", "even", "best", "worst", "alone", "other"]
    games = {
        ("anchor", "even"): 2,
        ("even", "anchor"): 2,
        ("best", "even"): 3,
        ("anchor", "worst"): 3,
        ("alone", "other"): 1,
        ("other", "alone"): 1,
    }
    found = fit(players, table(players, games), "anchor", 500.0)
    assert found["even"] == pytest.approx(500.0)
    assert found["best"] == math.inf
    assert found["worst"] == -math.inf
    assert math.isnan(found["alone"])
    assert math.isnan(found["other"])


@pytest.mark.parametrize(
    ("anchor", "wins", "message"),
    [
        ("c", [[0, 1], [1, 0]], "anchor 'c' is none of a, b"),
        ("a", [[0, -1], [1, 0]], "finite"),
        ("a", [[1, 1], [1, 0]], "without games against oneself"),
        ("a", [[0, 1, 1], [1, 0, 1]], r"\[2, 2\] table"),
    ],
)
def test_refusals(anchor: str, wins: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(["a", "b"], np.array(wins), anchor, 1000.0)


def games(results: list[float], model: str = "model", baseline: str = "north") -> list[Game]:
    """Return one pair a request: the result in both orders."""
    return [
        Game(str(i), 0, model, baseline, first, score) for i, score in enumerate(results) for first in (True, False)
    ]


def test_the_interval_holds_the_truth_and_narrows() -> None:
    # 60 of 100 requests won: 400 * log10(1.5) = 70.44; a bootstrap of the share 0.6 has a standard error of 0.049, so
    # 0.504 to 0.696 at 95%, which is 2.8 to 143.9 points.
    found = rate(games([1.0] * 60 + [0.0] * 40), "north", 1000.0, resamples=1000, seed=4)
    assert list(found) == ["model", "north"]
    assert found["model"].rating == pytest.approx(1070.4365, abs=1e-3)
    assert found["model"].low == pytest.approx(1002.8, abs=12)
    assert found["model"].high == pytest.approx(1143.9, abs=12)
    assert found["north"] == Rated(1000.0, 1000.0, 1000.0)
    assert rate(games([1.0] * 60 + [0.0] * 40), "north", 1000.0, 100, 4) == rate(
        games([1.0] * 60 + [0.0] * 40), "north", 1000.0, 100, 4
    )
    wide = rate(games([1.0] * 6 + [0.0] * 4), "north", 1000.0, resamples=300, seed=4)["model"]
    assert wide.high - wide.low > 2 * (found["model"].high - found["model"].low)


def test_an_end_without_a_number_says_so() -> None:
    # One win in eight requests: a third of the draws hold none, so the lower end is minus infinity.
    found = rate(games([1.0] + [0.0] * 7), "north", 1000.0, resamples=300, seed=4)["model"]
    assert found.rating == pytest.approx(1000 - 400 * math.log10(7), abs=1e-3)
    assert found.low == -math.inf
    assert found.as_dict() == {"rating": found.rating, "low": None, "high": found.high, "note": None}
    lost = rate(games([0.0, 0.0]), "north", 1000.0, resamples=20, seed=4)["model"].as_dict()
    assert lost["rating"] is None
    assert "below the anchor" in lost["note"]
    with pytest.raises(ValueError, match="ratings need games"):
        rate([], "north", 1000.0, 10, 0)


def test_a_tie_counts_half() -> None:
    # 2 wins, 2 ties, 0 losses: 3 to 1.
    found = rate(games([1.0, 1.0, 0.5, 0.5]), "north", 1000.0, resamples=20, seed=4)
    assert found["model"].rating == pytest.approx(1190.848502, abs=1e-4)
