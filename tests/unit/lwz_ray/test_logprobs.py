"""Chunked logprobs and entropies are torch's, forward and backward, and no [tokens, vocabulary] matrix is ever made."""

import math

import pytest
import torch

from lwz_ray.logprobs import chunked_logprobs
from tests.largest_tensor import LargestTensor

TOKENS, HIDDEN, VOCABULARY = 37, 8, 50


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden, weight (both with gradient) and targets."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def sent() -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 gradients to send back into logprobs and entropies."""
    generator = torch.Generator().manual_seed(6)
    both = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    return both[0], both[1]


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same in float64 with the whole matrix."""
    log_p = torch.log_softmax(hidden.double() @ weight.double().T / temperature, dim=1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def gradients(
    found: tuple[torch.Tensor, torch.Tensor], of: tuple[torch.Tensor, torch.Tensor], back: str
) -> tuple[torch.Tensor, ...]:
    """Send gradients back into the logprobs, the entropies or both."""
    both = zip(("logprobs", "entropies"), found, sent(), strict=True)
    pairs = [(f, g.to(f.dtype)) for name, f, g in both if name in back]
    return torch.autograd.grad([f for f, _ in pairs], of, [g for _, g in pairs])


@pytest.mark.parametrize("back", ["logprobs", "entropies", "logprobs and entropies"])
@pytest.mark.parametrize("temperature", [1.0, 0.8, 2.5])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 36, 37, 1000])
def test_values_and_gradients_are_torchs(back: str, temperature: float, chunk_tokens: int) -> None:
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        hidden, weight, targets = inputs(dtype)
        found = chunked_logprobs(hidden, weight, targets, temperature, chunk_tokens)
        expected = plain(hidden, weight, targets, temperature)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
        got, wanted = (gradients(f, (hidden, weight), back) for f in (found, expected))
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def test_a_literal_example() -> None:
    # Logits 1, 2 at temperature 0.5 are 2, 4: p = 1 / (1 + e^2) and e^2 / (1 + e^2).
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    logprob, entropy = chunked_logprobs(hidden, weight, torch.tensor([1]), 0.5, 4)
    p = 1.0 / (1.0 + math.exp(2.0))
    assert logprob.item() == pytest.approx(-0.12692801104297263, abs=1e-12)
    assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-12)
    assert entropy.item() == pytest.approx(0.3653338551, abs=1e-10)
    # d log p_2 / dh = (2 - (p 1 + (1 - p) 2)) / T = p / T.
    (gradient,) = torch.autograd.grad(logprob.sum(), hidden)
    assert gradient.item() == pytest.approx(2 * p, abs=1e-12)


def test_a_certain_token_has_no_entropy_and_gives_finite_gradients() -> None:
    hidden = torch.ones(2, 1, requires_grad=True)
    weight = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    logprobs, entropies = chunked_logprobs(hidden, weight, torch.tensor([0, 1]), 1.0, 1)
    assert (logprobs.tolist(), entropies.tolist()) == ([0.0, -600.0], [0.0, 0.0])
    (logprobs.sum() + entropies.sum()).backward()
    assert hidden.grad is not None and hidden.grad[:, 0].tolist() == [0.0, -600.0]


def test_bfloat16_weights_give_float32_logprobs_and_bfloat16_gradients() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    found = chunked_logprobs(hidden, weight, targets, 1.0, 10)
    got = gradients(found, (hidden, weight), "logprobs and entropies")
    assert [x.dtype for x in (*found, *got)] == [torch.float32] * 2 + [torch.bfloat16] * 2
    expected = plain(hidden, weight, targets, 1.0)
    wanted = gradients(expected, (hidden, weight), "logprobs and entropies")
    for one, other in zip((*found, *got), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0.05, atol=0.05)


def test_no_token_at_all() -> None:
    hidden, weight, _ = inputs()
    logprobs, entropies = chunked_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.int64), 1.0, 4)
    assert (logprobs.shape, entropies.shape) == ((0,), (0,))
    (logprobs.sum() + entropies.sum()).backward()
    assert weight.grad is not None and weight.grad.abs().max().item() == 0.0


def test_a_frozen_head_gets_no_gradient_and_no_room_for_one() -> None:
    hidden, weight, targets = inputs()
    wanted = torch.autograd.grad(chunked_logprobs(hidden, weight, targets, 1.0, 4)[0].sum(), hidden)[0]
    with LargestTensor() as watch:
        chunked_logprobs(hidden, weight.detach(), targets, 1.0, 4)[0].sum().backward()
    assert torch.equal(hidden.grad, wanted)  # type: ignore[arg-type]
    assert watch.made[(VOCABULARY, HIDDEN), torch.float32] == 0


def test_rows_and_targets_must_agree() -> None:
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="hidden has 37 rows for 36 targets"):
        chunked_logprobs(hidden, weight, targets[:-1], 1.0, 4)


def largest(run, tokens: int, vocabulary: int) -> LargestTensor:
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    with LargestTensor() as watch:
        logprobs, entropies = run(hidden, weight, torch.zeros(tokens, dtype=torch.int64))
        (logprobs.sum() + entropies.sum()).backward()
    return watch


def test_no_matrix_of_tokens_by_vocabulary_is_made() -> None:
    ours = largest(lambda h, w, t: chunked_logprobs(h, w, t, 0.8, 16), 512, 1000)
    assert ours.elements == 16 * 1000
    assert ours.made[(16, 1000), torch.float32] == 4  # two buffers forward, two backward, however many chunks
    # The gradient of the head is made once, in its own dtype: no second copy of it.
    assert ours.made[(1000, 4), torch.float32] == 1
    assert largest(lambda h, w, t: plain(h, w, t, 0.8), 512, 1000).elements == 512 * 1000
