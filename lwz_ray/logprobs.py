"""Log-probabilities of given tokens in chunks: the [tokens, vocabulary] matrix is never built.

Forward keeps one chunk of logits at a time and stores only log-probabilities; backward recomputes each chunk.
"""

import torch


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T / T)[target], chunk by chunk, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk_tokens):
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for start in range(0, targets.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = _logits(hidden[part], weight, temperature)
            out[part] = logits.gather(1, targets[part, None]).squeeze(1) - torch.logsumexp(logits, dim=1)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        return out

    @staticmethod
    def backward(ctx, grad_out):
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, targets.shape[0], ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            grad = torch.softmax(_logits(hidden[part], weight, ctx.temperature), dim=1).neg_()
            grad.scatter_add_(1, targets[part, None], torch.ones_like(targets[part, None], dtype=grad.dtype))
            grad.mul_((grad_out[part] / ctx.temperature)[:, None])
            grad = grad.to(weight.dtype)
            grad_hidden[part] = (grad @ weight).to(hidden.dtype)
            grad_weight += grad.T @ hidden[part].to(weight.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return float32 logits [chunk, vocabulary] of the distribution that is sampled from."""
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def chunked_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, chunk_tokens: int
) -> torch.Tensor:
    """Return float32 log-probabilities [num_tokens] of `targets` under softmax(hidden @ weight.T / T).

    hidden: [num_tokens, hidden_size]; weight: [vocabulary, hidden_size], the output embedding; targets: int64
    [num_tokens]. temperature T: the one used in sampling. At most `chunk_tokens` rows of logits exist at any time,
    forward or backward.
    """
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"hidden has {hidden.shape[0]} rows for {targets.shape[0]} targets")
    return _ChunkedLogprobs.apply(hidden, weight, targets, temperature, chunk_tokens)
