"""A packed row gives what each sample gives alone with transformers' own attention."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from learners.liger import apply_liger
from learners.packed_attention import attend_by_segment, packed_attention, varlen_layout
from learners.policy_model import PolicyModel
from lwz_ray.errors import UserError
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
    row = build_microbatch(samples, group_by_prompt(samples, 1000))
    ids, positions, rows, targets = map(torch.from_numpy, (row.token_ids, row.position_ids, row.rows, row.targets))
    return model(ids[None], positions[None], row.segments, rows, targets, TEMPERATURE)[0]


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


def test_what_the_model_asks_for_and_is_not_done_is_refused() -> None:
    x = torch.zeros(1, 2, 5, 4)
    segments = ((0, 0, 0, 2), (0, 2, 2, 5))  # 2 tokens, and 2 + 3
    assert packed_attention(torch.nn.Identity(), x, x, x, None, segments=segments, sliding_window=5)[0].shape == (
        1, 5, 2, 4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no sliding window: the model's is 4, a sample has 5"):
        packed_attention(torch.nn.Identity(), x, x, x, None, segments=segments, sliding_window=4)
    with pytest.raises(ValueError, match="does not know softcap"):
        packed_attention(torch.nn.Identity(), x, x, x, None, segments=segments, softcap=50.0)


def test_sequences_of_the_variable_length_kernel() -> None:
    # p p a a a b c: a prompt, completions a (3) and b (1) behind it, and a sample alone.
    rows, bounds, kept, longest = varlen_layout(
        ((0, 0, 0, 2), (0, 2, 2, 5), (0, 2, 5, 6), (6, 6, 6, 7)), torch.device("cpu")
    )
    assert rows.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert (bounds.tolist(), bounds.dtype) == ([0, 2, 7, 10, 11], torch.int32)
    assert (kept.tolist(), longest) == ([0, 1, 4, 5, 6, 9, 10], 5)


def test_its_sequences_and_kept_rows_give_packed_attention() -> None:
    # The kernel itself needs a GPU; what it is handed is run here through plain causal attention.
    torch.manual_seed(0)
    segments = ((0, 0, 0, 2), (0, 2, 2, 5), (0, 2, 5, 6), (6, 6, 6, 7))
    q, k, v = (torch.randn(1, 2, 7, 4) for _ in range(3))
    rows, bounds, kept, _ = varlen_layout(segments, torch.device("cpu"))
    parts = [
        scaled_dot_product_attention(q[:, :, rows[a:b]], k[:, :, rows[a:b]], v[:, :, rows[a:b]], is_causal=True)
        for a, b in pairwise(bounds.tolist())
    ]
    found = torch.cat(parts, dim=2)[:, :, kept].transpose(1, 2)
    torch.testing.assert_close(found, attend_by_segment(q, k, v, segments, None), rtol=0, atol=1e-6)


def test_ligers_kernels_without_its_package_name_the_extra(alone: Any) -> None:
    try:
        import liger_kernel  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"install `lwz_ray\[liger\]` on the learner nodes"):
            apply_liger(alone)
    else:
        pytest.skip("liger-kernel is installed")
