"""The reward model that is trained: a decoder with one scalar per text, read at the text's last token."""

import torch

from learners.scalar_head import ScalarModel, load_scalar_decoder
from learners.sequence_parallel import SequenceGroup


class RewardModel(ScalarModel):
    """Gives each text of a packed row a score, unbounded, higher is better; `positions` are the texts' last ones."""

    @classmethod
    def load(
        cls,
        path: str,
        trust_remote_code: bool,
        activation_checkpointing: bool,
        seed: int,
        attention: str = "sdpa",
        liger: bool = False,
        sequence: SequenceGroup | None = None,
    ) -> "RewardModel":
        """Load a causal language model, which gets a new head, or a sequence classifier of one label with its own.

        A new head is drawn from N(0, 1 / (hidden_size + 1)), as in Stiennon et al. 2020 (arXiv 2009.01325, appendix
        C), from a generator of its own: every rank draws the same. Raises UserError where the folder has no such head.
        """
        lm, is_new = load_scalar_decoder(
            "model.path", path, trust_remote_code, activation_checkpointing, attention, liger
        )
        if is_new:
            weight = lm.score.weight
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(weight.shape, generator=generator) * (weight.shape[1] + 1) ** -0.5
            with torch.no_grad():
                weight.copy_(drawn)
        return cls(lm, sequence)
