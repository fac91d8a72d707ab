"""Elo ratings from games by Bradley-Terry maximum likelihood, with bootstrap intervals over requests."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import choix
import numpy as np

from lwz_ray.benchmarks.records import Game

POINTS = 400.0 / math.log(10.0)
"""Elo points of one unit of log-odds: 400 points are odds of 10 to 1."""
MAX_ITERATIONS = 100_000
"""Of the fit; a few dozen are usual, thousands where two groups of players are held together by a single game."""


@dataclass(frozen=True, slots=True)
class Rated:
    """One player's rating in Elo points; infinite where the games set no limit, NaN where they say nothing."""

    rating: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON's own types: None for what is not finite, and in `note` what that means."""
        numbers = {name: _finite(getattr(self, name)) for name in ("rating", "low", "high")}
        return {**numbers, "note": _note(self.rating)}


def fit(players: Sequence[str], wins: np.ndarray, anchor: str, anchor_rating: float) -> dict[str, float]:
    """Return each player's rating that makes the games most likely, the anchor's being `anchor_rating`.

    P(i beats j) = 1 / (1 + 10^((R_j - R_i) / 400)) (Bradley and Terry 1952), a tie half a win to each side. The
    likelihood has its maximum at finite ratings only among players of whom each has, through a chain of wins, won
    against each other (Ford 1957). So players outside of the anchor's chain get +inf where they only won against it,
    -inf where they only lost, NaN where no chain of games leads there at all.

    Where each player met the anchor alone, a rating follows from these games and no others: with win rate w it
    is anchor_rating + 400 * log10(w / (1 - w)). A player who met several connected ones is drawn to all of them.

    wins: float [num_players, num_players], `wins[i, j]` = wins of i over j, ties half.
    Raises ValueError on an anchor that does not play and on wins that are no such table.
    """
    wins = np.asarray(wins, dtype=np.float64)
    num = len(players)
    if anchor not in players:
        raise ValueError(f"anchor {anchor!r} is none of {', '.join(players)}")
    if wins.shape != (num, num) or not np.isfinite(wins).all() or (wins < 0).any() or np.diag(wins).any():
        raise ValueError(f"wins must be a finite [{num}, {num}] table without games against oneself")
    at = players.index(anchor)
    beaten, beating = _reached(wins > 0, at), _reached(wins.T > 0, at)
    ratings = np.full(num, np.nan)
    ratings[beaten] = -np.inf
    ratings[beating] = np.inf
    mine = np.flatnonzero(beaten & beating)
    strengths = _maximum_likelihood(wins[np.ix_(mine, mine)])
    ratings[mine] = anchor_rating + POINTS * (strengths - strengths[list(mine).index(at)])
    return dict(zip(players, ratings.tolist(), strict=True))


def rate(games: Sequence[Game], anchor: str, anchor_rating: float, resamples: int, seed: int) -> dict[str, Rated]:
    """Return every player's rating with the percentile 95% interval of a bootstrap over requests.

    Requests are drawn with replacement and keep their games, both orders and all baselines. A draw in which a
    player has no finite rating counts with its infinite one, so an end of an interval may be infinite. Ratings
    by name, best first; -inf before NaN.
    Raises ValueError on no games.
    """
    if not games:
        raise ValueError("ratings need games: there are none")
    players = sorted({name for game in games for name in (game.model, game.baseline)})
    requests = {request: i for i, request in enumerate(dict.fromkeys(game.request_id for game in games))}
    place = {player: i for i, player in enumerate(players)}
    wins = np.zeros((len(requests), len(players), len(players)))
    for game in games:
        at, one, other = requests[game.request_id], place[game.model], place[game.baseline]
        wins[at, one, other] += game.score
        wins[at, other, one] += 1.0 - game.score
    points = fit(players, wins.sum(axis=0), anchor, anchor_rating)
    rng = np.random.default_rng(seed)
    num = len(requests)
    flat = wins.reshape(num, -1)
    draws = np.empty((resamples, len(players)))
    for i in range(resamples):
        drawn = rng.multinomial(num, np.full(num, 1.0 / num)) @ flat
        draws[i] = list(fit(players, drawn.reshape(wins.shape[1:]), anchor, anchor_rating).values())
    rated = {player: _interval(points[player], draws[:, i]) for player, i in place.items()}
    return dict(sorted(rated.items(), key=_best_first))


def summary(rated: Mapping[str, Rated], anchor: str, anchor_rating: float) -> dict[str, Any]:
    """Return ratings with what they are measured from, as JSON's own types."""
    return {
        "anchor": anchor,
        "anchor_rating": anchor_rating,
        "scale": "400 points are odds of 10 to 1",
        "ratings": {player: one.as_dict() for player, one in rated.items()},
    }


def _maximum_likelihood(wins: np.ndarray) -> np.ndarray:
    """Return the log-strengths of players who form one chain of wins; the fit is choix's I-LSR."""
    if wins.shape[0] == 1:
        return np.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return choix.ilsr_pairwise_dense(wins, max_iter=MAX_ITERATIONS)


def _reached(beats: np.ndarray, start: int) -> np.ndarray:
    """Return which players a chain leads to from `start`: bool [num_players], `beats[i, j]` being a step."""
    seen = np.zeros(beats.shape[0], dtype=bool)
    seen[start] = True
    while True:
        wider = seen | beats[seen].any(axis=0)
        if (wider == seen).all():
            return seen
        seen = wider


def _interval(rating: float, draws: np.ndarray) -> Rated:
    """Return the rating with its 2.5th and 97.5th percentile, both drawn values: infinite ones have ranks too."""
    known = draws[~np.isnan(draws)]
    if known.size == 0:
        return Rated(rating, math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5], method="inverted_cdf")
    return Rated(rating, float(low), float(high))


def _best_first(item: tuple[str, Rated]) -> tuple[bool, float, str]:
    player, rated = item
    unknown = math.isnan(rated.rating)
    return unknown, 0.0 if unknown else -rated.rating, player


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _note(rating: float) -> str | None:
    if math.isnan(rating):
        return "no games lead from the anchor to it"
    if math.isinf(rating):
        side = "above" if rating > 0 else "below"
        return f"no finite rating: it stands {side} the anchor in every chain of games"
    return None
