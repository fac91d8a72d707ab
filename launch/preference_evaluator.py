"""Scores held-out pairs with the learner's present weights and measures them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.pair_lines import pair_line
from lwz_ray.config import Config
from lwz_ray.preference_data import PairSet
from lwz_ray.preference_eval import PairScores, evaluate_pairs, length_baseline
from lwz_ray.preferences import PreferencePair
from lwz_ray.protocols import PairLearner
from lwz_ray.text import count_words


class PreferenceEvaluator:
    """Holds the held-out pairs; words of every text are counted once."""

    def __init__(self, config: Config, train: PairSet, held_out: PairSet, learner: PairLearner) -> None:
        self._config, self._held_out, self._learner = config, held_out, learner
        self._words = words_of(held_out.pairs)
        self._train_words = words_of(train.pairs)

    async def score(self, limit: int | None = None) -> PairScores:
        """Score the first `limit` pairs (None: all)."""
        pairs = self._held_out.encoded[:limit]
        found = await self._learner.score(pairs)
        chosen, rejected = np.asarray(found, dtype=np.float64).T
        kept, num = self._held_out.pairs[:limit], len(pairs)
        return PairScores(
            chosen,
            rejected,
            self._words[0][:num],
            self._words[1][:num],
            [p.source for p in kept],
            [p.kind for p in kept],
        )

    def measure(self, scores: PairScores) -> dict[str, Any]:
        """Return every measure of `lwz_ray.preference_eval`."""
        config = self._config
        return evaluate_pairs(scores, config.preference.match_words, config.eval.bootstrap_resamples, config.seed)

    def baseline(self, scores: PairScores) -> dict[str, Any]:
        """Return what a rule that sees only the length reaches on the same pairs."""
        return length_baseline(scores, self._train_words, self._config.eval.bootstrap_resamples, self._config.seed)

    async def numbers(self) -> dict[str, float]:
        """Return the `preference/what` numbers of the present weights, for one line of metrics."""
        found = self.measure(await self.score())
        return {
            "preference/accuracy": found["accuracy"]["mean"],
            "preference/macro_accuracy": found["macro_accuracy"]["mean"],
            "preference/log_loss": found["log_loss"],
        }

    def lines(self, scores: PairScores, step: int, version: int) -> list[dict[str, Any]]:
        """Return one line of `samples.jsonl` a pair."""
        return [
            pair_line(
                pair,
                (float(scores.chosen[i]), float(scores.rejected[i])),
                (int(scores.chosen_words[i]), int(scores.rejected_words[i])),
                i,
                step,
                version,
            )
            for i, pair in enumerate(self._held_out.pairs)
        ]


def words_of(pairs: Sequence[PreferencePair]) -> tuple[np.ndarray, np.ndarray]:
    """Return the words of the chosen and of the rejected texts, int64 [num_pairs] each."""
    return (
        np.asarray([count_words(p.chosen) for p in pairs], dtype=np.int64),
        np.asarray([count_words(p.rejected) for p in pairs], dtype=np.int64),
    )
