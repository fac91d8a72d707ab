"""The optimizer of either backend: torch's own, over the parameters that are trained."""

from collections.abc import Iterable

import torch

from learners.settings import LearnerSettings


def build_optimizer(settings: LearnerSettings, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101) or plain SGD over the parameters with a gradient.

    Raises ValueError for another name, and where nothing is trained.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError(f"{settings.model_path}: no parameter requires a gradient")
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            trained, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    raise ValueError(f"optimizer={settings.optimizer!r}: use adamw or sgd")


def squared_norm(gradients: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum of all squares, a float64 scalar on the device.

    In float32 the sum over millions of elements is off by some 1e-5 of itself, by the order in which it is taken.
    """
    squares = [torch.linalg.vector_norm(g, dtype=torch.float64).square().to(device) for g in gradients]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)


def clip(gradients: Iterable[torch.Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients of this norm to max_norm in place, where they are above it and finite."""
    if max_norm < norm < float("inf"):
        for gradient in gradients:
            gradient.mul_(max_norm / (norm + 1e-6))


@torch.no_grad()
def exchange(weights: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Exchange the contents of two equal lists of tensors in place, with one of them twice in memory at a time."""
    for mine, other in zip(weights, others, strict=True):
        kept = mine.clone()
        mine.copy_(other)
        other.copy_(kept)
