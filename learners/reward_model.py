"""The reward model that is trained: a decoder with one scalar per text, read at the text's last token."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from learners.packed_attention import register
from lwz_ray.errors import UserError
from lwz_ray.packing import Segment

HEAD = "score.weight"


class RewardModel(torch.nn.Module):
    """Wraps a sequence classifier of one label so that decoder and head run inside one forward, as FSDP needs it."""

    lm: Any
    """A transformers PreTrainedModel with a `score` head."""

    def __init__(self, lm: torch.nn.Module) -> None:
        super().__init__()
        self.lm = lm

    @classmethod
    def load(cls, path: str, trust_remote_code: bool, activation_checkpointing: bool, seed: int) -> "RewardModel":
        """Load a causal language model, which gets a new head, or a sequence classifier of one label with its own.

        A new head is drawn from N(0, 1 / (hidden_size + 1)), as in Stiennon et al. 2020 (arXiv 2009.01325, appendix
        C), from a generator of its own: every rank draws the same. Raises UserError where the folder has no such head.
        """
        lm, missing = _load(path, trust_remote_code)
        if missing == {HEAD}:
            weight = lm.score.weight
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(weight.shape, generator=generator) * (weight.shape[1] + 1) ** -0.5
            with torch.no_grad():
                weight.copy_(drawn)
        elif missing:
            raise UserError(f"model.path={path}: the weights {sorted(missing)[:3]} are not in the folder; complete it")
        lm.config.use_cache = False
        if activation_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.train()
        return cls(lm)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder layers, the unit of sharding."""
        return self.lm.base_model.layers

    def forward(
        self,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[Segment, ...],
        ends: torch.Tensor,
    ) -> torch.Tensor:
        """Return float32 scores [num_texts] of one packed row, unbounded, higher is better.

        token_ids, position_ids: int64 [1, num_tokens]; ends: int64 [num_texts], each text's last position.
        """
        hidden = self.lm.base_model(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, segments=segments
        ).last_hidden_state
        # A scalar is compared with its like by small differences: bfloat16 would round it to 1 part in 256.
        return hidden[0, ends].float() @ self.lm.score.weight[0].float()


def _load(path: str, trust_remote_code: bool) -> tuple[Any, set[str]]:
    """Return the model and the names of the weights that the folder lacks."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    name = (config.architectures or [""])[0]
    if name.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise UserError(
            f"model.path={path}: {name} has {config.num_labels} labels, a reward model has 1; start from a causal "
            "language model or a classifier of one label"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the missing head is handled here, not warned about
    try:
        lm, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            dtype="auto",
            attn_implementation=register(),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    head = getattr(lm, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1 or head.bias is not None:
        raise UserError(
            f"model.path={path}: {type(lm).__name__} has no scalar head `score` without bias; use a decoder such as "
            "Llama, Qwen or Mistral"
        )
    return lm, set(info["missing_keys"])
