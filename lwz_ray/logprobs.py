"""Log-probabilities and entropies of given tokens in chunks: the [tokens, vocabulary] matrix is never built.

Forward keeps one chunk of logits at a time and stores two numbers a token; backward recomputes each chunk.
"""

from collections.abc import Iterator

import torch


class _ChunkedLogprobs(torch.autograd.Function):
    """log p[target] and -sum p log p of p = softmax(h W^T / T), chunk by chunk, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk_tokens):
        chunks = _Chunks(hidden, weight, temperature, chunk_tokens)
        logprobs = torch.empty(targets.shape, dtype=chunks.dtype, device=hidden.device)
        entropies, log_sums = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part, z in chunks:
            greatest = z.amax(1, keepdim=True)
            z.sub_(greatest)
            of_target = z.gather(1, targets[part, None]).squeeze(1)
            e = torch.exp(z, out=chunks.second(z))
            total = e.sum(1)
            log_total = total.log()
            logprobs[part] = of_target - log_total
            # H = log sum e^z - sum p z; where p underflows to 0, z is finite, so its term is 0.
            entropies[part] = log_total - e.mul_(z).sum(1).div_(total)
            log_sums[part] = log_total.add_(greatest.squeeze(1))
        ctx.save_for_backward(hidden, weight, targets, entropies, log_sums)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies):
        # With z = h W^T / T:  d log p_t / dz = onehot(t) - p,  dH / dz = -p (log p + H).
        hidden, weight, targets, entropies, log_sums = ctx.saved_tensors
        chunks = _Chunks(hidden, weight, ctx.temperature, ctx.chunk_tokens)
        of_logprobs = torch.zeros_like(log_sums) if grad_logprobs is None else grad_logprobs / ctx.temperature
        of_entropies = None
        if grad_entropies is not None and bool(grad_entropies.any()):
            of_entropies = grad_entropies / ctx.temperature
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:  # not where the head is frozen, as under adapters
            grad_weight = torch.zeros(weight.shape, dtype=chunks.dtype, device=weight.device)
        for part, z in chunks:
            log_p = z.sub_(log_sums[part, None])
            if of_entropies is None:
                grad = log_p.exp_().mul_(of_logprobs[part, None].neg())
            else:
                p = torch.exp(log_p, out=chunks.second(log_p))
                factor = log_p.add_(entropies[part, None]).mul_(of_entropies[part, None]).add_(of_logprobs[part, None])
                grad = factor.mul_(p).neg_()
            grad.scatter_add_(1, targets[part, None], of_logprobs[part, None])
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                _add_product(grad_weight, grad, hidden[part].to(weight.dtype))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


class _Chunks:
    """The tempered logits of one chunk after another, all in one buffer: a chunk is gone when the next one comes."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, temperature: float, chunk_tokens: int) -> None:
        self._hidden, self._weight, self._temperature = hidden, weight, temperature
        self._rows = min(chunk_tokens, hidden.shape[0])
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self._second: torch.Tensor | None = None

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (rows, logits [chunk, vocabulary] in at least float32), to be overwritten at will."""
        if not self._rows:
            return
        # One buffer: a fresh one of 100 MB for each chunk would be mapped and cleared by the system each time.
        buffer = self._new()
        for start in range(0, self._hidden.shape[0], self._rows):
            part = slice(start, min(start + self._rows, self._hidden.shape[0]))
            rows = self._hidden[part].to(self._weight.dtype)
            z = buffer[: rows.shape[0]]
            if self.dtype == self._weight.dtype:
                torch.matmul(rows, self._weight.T, out=z)
            else:
                z.copy_(rows @ self._weight.T)
            if self._temperature != 1.0:
                z.div_(self._temperature)
            yield part, z

    def second(self, like: torch.Tensor) -> torch.Tensor:
        """Return a second buffer of the chunk's shape, made on first use."""
        if self._second is None:
            self._second = self._new()
        return self._second[: like.shape[0]]

    def _new(self) -> torch.Tensor:
        shape = (self._rows, self._weight.shape[0])
        return torch.empty(shape, dtype=self.dtype, device=self._weight.device)


def _add_product(total: torch.Tensor, grad: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add grad^T hidden to `total`, which is at least float32, so that many chunks do not lose each other's digits."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, hidden)
    else:
        total.add_(grad.T @ hidden)


def chunked_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities of `targets` under softmax(hidden @ weight.T / T), and that softmax's entropies.

    Both [num_tokens], in nats, float32 (float64 where weight is). hidden: [num_tokens, hidden_size]; weight:
    [vocabulary, hidden_size], the output embedding; targets: int64 [num_tokens]. temperature T: the one used in
    sampling. At most two buffers of `chunk_tokens` rows of logits exist at any time, forward or backward.
    """
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"hidden has {hidden.shape[0]} rows for {targets.shape[0]} targets")
    return _ChunkedLogprobs.apply(hidden, weight, targets, temperature, chunk_tokens)
