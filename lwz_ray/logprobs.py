"""Log-probabilities and entropies of given tokens in chunks: the [tokens, vocabulary] matrix is never built.

Forward keeps one chunk of logits at a time and stores two numbers a token; backward recomputes each chunk.
"""

import torch


class _ChunkedLogprobs(torch.autograd.Function):
    """log p[target] and -sum p log p of p = softmax(h W^T / T), chunk by chunk, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk_tokens):
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        for start in range(0, targets.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            log_p = _log_softmax(hidden[part], weight, temperature)
            logprobs[part] = log_p.gather(1, targets[part, None]).squeeze(1)
            entropies[part] = -(log_p.exp().mul_(log_p)).sum(1)
        ctx.save_for_backward(hidden, weight, targets, entropies)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies):
        # With z = h W^T / T:  d log p_t / dz = onehot(t) - p,  dH / dz = -p (log p + H).
        hidden, weight, targets, entropies = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        with_entropy = bool(grad_entropies.any())
        for start in range(0, targets.shape[0], ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            log_p = _log_softmax(hidden[part], weight, ctx.temperature)
            from_logprobs = grad_logprobs[part, None]
            if with_entropy:
                factor = log_p.add(entropies[part, None]).mul_(grad_entropies[part, None]).add_(from_logprobs).neg_()
                grad = log_p.exp_().mul_(factor)
            else:
                grad = log_p.exp_().mul_(from_logprobs.neg())
            grad.scatter_add_(1, targets[part, None], from_logprobs.to(grad.dtype))
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            grad_hidden[part] = (grad @ weight).to(hidden.dtype)
            grad_weight += grad.T @ hidden[part].to(weight.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _log_softmax(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return float32 log-probabilities [chunk, vocabulary] of the distribution that is sampled from."""
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.sub_(torch.logsumexp(logits, dim=1, keepdim=True))


def chunked_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 log-probabilities of `targets` under softmax(hidden @ weight.T / T), and that softmax's entropies.

    Both [num_tokens], in nats. hidden: [num_tokens, hidden_size]; weight: [vocabulary, hidden_size], the output
    embedding; targets: int64 [num_tokens]. temperature T: the one used in sampling. At most `chunk_tokens` rows of
    logits exist at any time, forward or backward.
    """
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"hidden has {hidden.shape[0]} rows for {targets.shape[0]} targets")
    return _ChunkedLogprobs.apply(hidden, weight, targets, temperature, chunk_tokens)
