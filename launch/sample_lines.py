"""One line of `samples.jsonl` for one sample."""

from typing import Any

from lwz_ray.errors import RewardFailure
from lwz_ray.records import Sample

SPLITS = ("train", "eval", "eval_before", "eval_after")


def sample_line(sample: Sample, advantage: float | None, step: int, split: str) -> dict[str, Any]:
    """Return the JSON object of one sample: texts, scores and provenance, without token arrays.

    A failed reward is `{"failure": reason, "blame": …, "action": …}`, never a number; an evaluation sample has no
    advantage (null).
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    completion = sample.completion
    return {
        "step": step,
        "split": split,
        "prompt_id": sample.prompt.prompt_id,
        "prompt_index": sample.prompt.index,
        "language": sample.prompt.language,
        "length_range": sample.prompt.length_range,
        "group_id": sample.group_id,
        "sample_index": sample.sample_index,
        "prompt": sample.prompt.text,
        "completion": completion.text,
        "num_words": sample.num_words,
        "num_tokens": completion.num_tokens,
        "well_formed": sample.parsed.well_formed,
        "rewards": {k: _reward(v) for k, v in sample.rewards.items()},
        "measures": dict(sample.measures),
        "advantage": advantage,
        "policy_version_min": completion.policy_version_min,
        "policy_version_max": completion.policy_version_max,
        "finish_reason": completion.finish_reason,
    }


def _reward(value: float | RewardFailure) -> Any:
    if isinstance(value, RewardFailure):
        return {"failure": value.reason, "blame": value.blame, "action": value.action}
    return float(value)
