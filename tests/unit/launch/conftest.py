"""A whole config and real samples, without a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.records import Completion, ParsedText, Prompt, Sample, VersionSpan

FIXED: dict[str, Any] = {
    "steps": 20,
    "group_size": 8,
    "groups_per_step": 4,
    "seed": 1,
    "max_staleness": 1,
    "run": {"name": "trial", "git_revision": "0123abc", "resume": "never"},
    "tracking": {"wandb": False, "project": "trial", "progress": False},
}
"""What the tests rely on, whatever the presets become."""


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Return a function that builds a config; `section={"field": value}` changes fields of a section."""

    def make(**changes: Any) -> Config:
        tree = compose(["run=demo_cpu", f"run.dir={tmp_path / 'runs'}"]).model_dump()
        for layer in (FIXED, changes):
            for key, value in layer.items():
                tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        return Config.model_validate(tree)

    return make


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Return a function that builds one sample of 6 tokens, sampled with versions 3 and 4."""

    def make(
        text: str = "<answer>A short tale.</answer>",
        *,
        index: int = 0,
        sample_index: int = 0,
        request: str = "Write a tale of about 20 words.",
        language: Any = "en",
        num_words: int = 18,
        rewards: dict[str, Any] | None = None,
    ) -> Sample:
        prompt = Prompt(f"p{index}", request, language, (18, 22), index)
        completion = Completion(
            text=text,
            token_ids=np.arange(6, dtype=np.int32),
            rollout_logprobs=np.full(6, -0.5, dtype=np.float32),
            finish_reason="stop",
            version_spans=(VersionSpan(0, 4, 3), VersionSpan(4, 6, 4)),
        )
        return Sample(
            group_id=10 + index,
            sample_index=sample_index,
            prompt=prompt,
            prompt_token_ids=np.arange(3, dtype=np.int32),
            completion=completion,
            parsed=ParsedText(None, "A short tale.", True, 1.0),
            num_words=num_words,
            rewards={"length": 1.0, "format": 0.5} if rewards is None else rewards,
            measures={"repetition": 0.0, "distinct_2": 1.0},
        )

    return make
