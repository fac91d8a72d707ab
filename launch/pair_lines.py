"""One line of `samples.jsonl` for one preference pair."""

from typing import Any

from lwz_ray.preferences import PreferencePair

PAIR_SPLIT = "pairs_after"
"""Held-out pairs, scored after training."""


def pair_line(
    pair: PreferencePair, scores: tuple[float, float], words: tuple[int, int], index: int, step: int, version: int
) -> dict[str, Any]:
    """Return the JSON object of one scored pair; scores and words are of the chosen text and of the rejected one.

    index: place in the held-out order; version: of the weights that scored.
    """
    return {
        "step": step,
        "split": PAIR_SPLIT,
        "pair_index": index,
        "source": pair.source,
        "kind": pair.kind,
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "chosen_score": scores[0],
        "rejected_score": scores[1],
        "chosen_words": words[0],
        "rejected_words": words[1],
        "margin": pair.margin,
        "policy_version": version,
    }
