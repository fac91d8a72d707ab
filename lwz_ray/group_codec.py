"""Groups as plain JSON values and back: what a checkpoint keeps of the buffer."""

from dataclasses import asdict
from typing import Any

import numpy as np

from lwz_ray.errors import RewardFailure
from lwz_ray.grouping import MadeGroup
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, VersionSpan


def group_to_dict(made: MadeGroup) -> dict[str, Any]:
    """Return JSON values only."""
    group = made.group
    return {
        "group_id": group.group_id,
        "prompt": asdict(group.prompt),
        "samples": [_sample_to_dict(s) for s in group.samples],
        "generate_s": made.generate_s,
        "score_s": made.score_s,
    }


def group_from_dict(raw: dict[str, Any]) -> MadeGroup:
    """Return what `group_to_dict` was given; staleness is measured anew when the group is consumed."""
    length_range = raw["prompt"]["length_range"]
    prompt = Prompt(**{**raw["prompt"], "length_range": tuple(length_range) if length_range else None})
    samples = tuple(_sample_from_dict(s, prompt, raw["group_id"]) for s in raw["samples"])
    return MadeGroup(Group(raw["group_id"], prompt, samples), raw["generate_s"], raw["score_s"])


def _sample_to_dict(sample: Sample) -> dict[str, Any]:
    completion = sample.completion
    return {
        "sample_index": sample.sample_index,
        "prompt_token_ids": sample.prompt_token_ids.tolist(),
        "text": completion.text,
        "token_ids": completion.token_ids.tolist(),
        "rollout_logprobs": completion.rollout_logprobs.tolist(),
        "finish_reason": completion.finish_reason,
        "version_spans": [[s.start, s.stop, s.policy_version] for s in completion.version_spans],
        "parsed": asdict(sample.parsed),
        "num_words": sample.num_words,
        "rewards": {k: asdict(v) if isinstance(v, RewardFailure) else v for k, v in sample.rewards.items()},
        "measures": sample.measures,
    }


def _sample_from_dict(raw: dict[str, Any], prompt: Prompt, group_id: int) -> Sample:
    completion = Completion(
        text=raw["text"],
        token_ids=np.asarray(raw["token_ids"], dtype=np.int32),
        rollout_logprobs=np.asarray(raw["rollout_logprobs"], dtype=np.float32),
        finish_reason=raw["finish_reason"],
        version_spans=tuple(VersionSpan(*s) for s in raw["version_spans"]),
    )
    return Sample(
        group_id=group_id,
        sample_index=raw["sample_index"],
        prompt=prompt,
        prompt_token_ids=np.asarray(raw["prompt_token_ids"], dtype=np.int32),
        completion=completion,
        parsed=ParsedText(**raw["parsed"]),
        num_words=raw["num_words"],
        rewards={k: RewardFailure(**v) if isinstance(v, dict) else v for k, v in raw["rewards"].items()},
        measures=raw["measures"],
    )
