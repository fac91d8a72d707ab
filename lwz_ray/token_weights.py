"""Global denominators of a loss, as one weight a trained token."""

from collections.abc import Sequence

from lwz_ray.config_algorithm import Aggregation


def token_weights_of(
    num_trained_tokens: Sequence[int], aggregation: Aggregation, fixed_length_tokens: int
) -> list[float]:
    """Return each sample's per-token weight for a whole optimizer batch.

    `sequence_mean` (GRPO): mean over samples of the mean over their tokens, 1 / (N * len_i).
    `token_mean` (DAPO): mean over all tokens, 1 / sum(len).
    `fixed_length` (Dr. GRPO, arXiv 2503.20783): 1 / (N * fixed_length_tokens), the same for short and long samples.
    A sample without trained tokens weighs 0 and is not counted in N.
    """
    trained = [n for n in num_trained_tokens if n > 0]
    if aggregation == "token_mean":
        total = sum(trained)
        return [1.0 / total if n else 0.0 for n in num_trained_tokens]
    if aggregation == "fixed_length":
        return [1.0 / (len(trained) * fixed_length_tokens) if n else 0.0 for n in num_trained_tokens]
    return [1.0 / (len(trained) * n) if n else 0.0 for n in num_trained_tokens]
