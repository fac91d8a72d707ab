"""Chunked logprobs are torch's, forward and backward, and no [tokens, vocabulary] matrix is ever made."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lwz_ray.logprobs import chunked_logprobs

TOKENS, HIDDEN, VOCABULARY = 37, 8, 50


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden, weight (both with gradient), targets, and a gradient to send back."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets, torch.randn(TOKENS, generator=generator)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the same in float64 with the whole matrix."""
    logits = hidden.double() @ weight.double().T / temperature
    return torch.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.8, 2.5])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 36, 37, 1000])
def test_forward_and_gradients_are_torchs(temperature: float, chunk_tokens: int) -> None:
    hidden, weight, targets, sent = inputs()
    found = chunked_logprobs(hidden, weight, targets, temperature, chunk_tokens)
    got = torch.autograd.grad(found, (hidden, weight), sent)
    expected = plain(hidden, weight, targets, temperature)
    wanted = torch.autograd.grad(expected, (hidden, weight), sent.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_a_literal_example() -> None:
    # Logits 1, 2 at temperature 0.5 are 2, 4: log softmax of the second -ln(1 + e^-2).
    found = chunked_logprobs(torch.ones(1, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([1]), 0.5, 4)
    assert found.item() == pytest.approx(-0.1269280110, abs=1e-6)


def test_bfloat16_weights_give_float32_logprobs_and_bfloat16_gradients() -> None:
    hidden, weight, targets, sent = inputs(torch.bfloat16)
    found = chunked_logprobs(hidden, weight, targets, 1.0, 10)
    grads = torch.autograd.grad(found, (hidden, weight), sent)
    assert (found.dtype, *(g.dtype for g in grads)) == (torch.float32, torch.bfloat16, torch.bfloat16)
    wanted = torch.autograd.grad(plain(hidden, weight, targets, 1.0), (hidden, weight), sent.double())
    torch.testing.assert_close(found.double(), plain(hidden, weight, targets, 1.0), rtol=0.02, atol=0.05)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0.05, atol=0.05)


def test_no_token_at_all() -> None:
    hidden, weight, _, _ = inputs()
    found = chunked_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.int64), 1.0, 4)
    assert found.shape == (0,)
    found.sum().backward()
    assert weight.grad is not None and weight.grad.abs().max().item() == 0.0


def test_rows_and_targets_must_agree() -> None:
    hidden, weight, targets, _ = inputs()
    with pytest.raises(ValueError, match="hidden has 37 rows for 36 targets"):
        chunked_logprobs(hidden, weight, targets[:-1], 1.0, 4)


class LargestTensor(TorchDispatchMode):
    """Watches every operation, also those of backward, and keeps the greatest number of elements that came out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def largest(run, tokens: int, vocabulary: int) -> int:
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    with LargestTensor() as watch:
        run(hidden, weight, torch.zeros(tokens, dtype=torch.int64)).sum().backward()
    return watch.elements


def test_no_matrix_of_tokens_by_vocabulary_is_made() -> None:
    assert largest(lambda h, w, t: chunked_logprobs(h, w, t, 0.8, 16), 512, 1000) == 16 * 1000
    assert largest(lambda h, w, t: plain(h, w, t, 0.8), 512, 1000) == 512 * 1000
