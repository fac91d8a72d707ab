"""The critic of PPO: a decoder with one value per position, the return expected of the text so far."""

import torch

from learners.scalar_head import ScalarModel, load_scalar_decoder
from learners.sequence_parallel import SequenceGroup


class ValueModel(ScalarModel):
    """Gives states a value in units of the return; `positions` are those before the tokens whose states are valued."""

    @classmethod
    def load(
        cls,
        path: str,
        trust_remote_code: bool,
        activation_checkpointing: bool,
        attention: str = "sdpa",
        liger: bool = False,
        sequence: SequenceGroup | None = None,
    ) -> "ValueModel":
        """Load a causal language model, which gets a new head, or a classifier of one label (a reward model) with its.

        A new head is 0, and so is every value until it has been trained: the first advantages are then the rewards
        themselves, while a random head would add noise as large as they are. Raises UserError where the folder has no
        such head.
        """
        lm, is_new = load_scalar_decoder(
            "critic.path", path, trust_remote_code, activation_checkpointing, attention, liger
        )
        if is_new:
            torch.nn.init.zeros_(lm.score.weight)
        return cls(lm, sequence)
