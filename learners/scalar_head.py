"""Decoders with one number a position: what the reward model and the critic have in common."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from learners.decoder import made_trainable
from learners.packed_attention import register
from learners.sequence_parallel import SequenceGroup
from lwz_ray.errors import UserError
from lwz_ray.packing import Segment

HEAD = "score.weight"


class ScalarModel(torch.nn.Module):
    """Wraps a sequence classifier of one label so that decoder and head run inside one forward, as FSDP needs it."""

    lm: Any
    """A transformers PreTrainedModel with a `score` head."""

    def __init__(self, lm: torch.nn.Module, sequence: SequenceGroup | None = None) -> None:
        """sequence: the ranks that share each row; None: this rank computes it alone."""
        super().__init__()
        self.lm = lm
        self.sequence = sequence

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder layers, the unit of sharding."""
        return self.lm.base_model.layers

    def forward(
        self,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[Segment, ...],
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Return the float32 scalars [num_positions] at `positions` of one packed row, unbounded.

        token_ids, position_ids: int64 [1, num_tokens]; positions: int64 [num_positions]. All of them are the whole
        row's, and so is what is returned, also where several ranks share the row.
        """
        sequence = self.sequence
        if sequence is not None:
            token_ids, position_ids = sequence.slice_row(token_ids), sequence.slice_row(position_ids)
        hidden = self.lm.base_model(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, segments=segments, sequence=sequence
        ).last_hidden_state[0]
        if sequence is None:
            return self._scalars(hidden[positions])
        mine, local = sequence.own(positions, hidden.shape[0])
        return sequence.whole(self._scalars(hidden[local]), mine, positions.shape[0])

    def _scalars(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the head to hidden states [num_positions, hidden_size].

        A scalar is compared with its like by small differences: bfloat16 would round it to 1 part in 256.
        """
        return hidden.float() @ self.lm.score.weight[0].float()


def load_scalar_decoder(
    key: str,
    path: str,
    trust_remote_code: bool,
    activation_checkpointing: bool,
    attention: str = "sdpa",
    liger: bool = False,
) -> tuple[Any, bool]:
    """Return a transformers sequence classifier of one label, and whether its head is new and to be filled.

    key: of the config, named in errors. attention: sdpa | varlen. liger: with Liger's kernels. A causal language model
    gets a new head; a classifier of one label keeps its own. Raises UserError where the folder has neither. A new head
    holds whatever transformers drew, which differs from rank to rank: the caller fills it.
    """
    lm, missing = _load(key, path, trust_remote_code, register(attention))
    if missing - {HEAD}:
        raise UserError(f"{key}={path}: the weights {sorted(missing)[:3]} are not in the folder; complete it")
    return made_trainable(lm, activation_checkpointing, liger), missing == {HEAD}


def _load(key: str, path: str, trust_remote_code: bool, attention: str) -> tuple[Any, set[str]]:
    """Return the model and the names of the weights that the folder lacks."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    name = (config.architectures or [""])[0]
    if name.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise UserError(
            f"{key}={path}: {name} has {config.num_labels} labels, a scalar head has 1; start from a causal "
            "language model or a classifier of one label"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the missing head is handled here, not warned about
    try:
        lm, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            dtype="auto",
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    head = getattr(lm, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1 or head.bias is not None:
        raise UserError(
            f"{key}={path}: {type(lm).__name__} has no scalar head `score` without bias; use a decoder such as "
            "Llama, Qwen or Mistral"
        )
    return lm, set(info["missing_keys"])
