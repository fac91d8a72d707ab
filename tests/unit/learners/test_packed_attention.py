"""A packed row gives what each sample gives alone with transformers' own attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.packed_attention import packed_attention
from learners.policy_model import PolicyModel
from lwz_ray.packing import build_microbatch, group_by_prompt
from lwz_ray.records import TrainSample
from tests.learner_parts import batch

TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path) -> Any:
    """Return the tiny model in float32 with torch's plain attention."""
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")


def packed_model(folder: Path, activation_checkpointing: bool) -> PolicyModel:
    model = PolicyModel.load(str(folder), 16, False, activation_checkpointing)
    return model.float()


def packed_logprobs(model: PolicyModel, samples: Sequence[TrainSample]) -> torch.Tensor:
    row = build_microbatch([[samples[i] for i in f] for f in group_by_prompt(samples, 1000)])
    ids, positions, rows, targets = map(torch.from_numpy, (row.token_ids, row.position_ids, row.rows, row.targets))
    return model(ids[None], positions[None], row.segments, rows, targets, TEMPERATURE)


def logprobs_alone(model: Any, samples: Sequence[TrainSample]) -> torch.Tensor:
    out = []
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids).long()
        logits = model(ids[None]).logits[0, :-1] / TEMPERATURE
        every = torch.log_softmax(logits, dim=1).gather(1, ids[1:, None])[:, 0]
        out.append(every[torch.from_numpy(sample.loss_mask[1:])])
    return torch.cat(out)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_logprobs_and_gradients_of_a_packed_row(
    tiny_model_dir: Path, alone: Any, activation_checkpointing: bool
) -> None:
    model, samples = packed_model(tiny_model_dir, activation_checkpointing), batch()
    found, wanted = packed_logprobs(model, samples), logprobs_alone(alone, samples)
    assert found.shape == (65,)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    torch.manual_seed(0)
    sent = torch.randn(65)
    (found * sent).sum().backward()
    alone.zero_grad()
    (wanted * sent).sum().backward()
    for (name, one), (_, other) in zip(model.lm.named_parameters(), alone.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_what_stands_beside_a_sample_changes_nothing(tiny_model_dir: Path) -> None:
    model, samples = packed_model(tiny_model_dir, False), batch()
    with torch.no_grad():
        together = packed_logprobs(model, samples)
        torch.testing.assert_close(packed_logprobs(model, samples[3:4]), together[24:54], rtol=0, atol=1e-5)
        backwards = packed_logprobs(model, samples[::-1])
    torch.testing.assert_close(backwards[:11], together[54:], rtol=0, atol=1e-5)


def test_a_row_without_segments_is_refused() -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="packed attention needs one row and its segments, got 1 rows, None"):
        packed_attention(torch.nn.Identity(), x, x, x, None)
    with pytest.raises(ValueError, match="got 2 rows"):
        packed_attention(torch.nn.Identity(), x.repeat(2, 1, 1, 1), x, x, None, segments=((0, 0, 0, 3),))
