"""The network that is trained: a causal language model that answers with log-probabilities, never logits."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from learners.packed_attention import register
from lwz_ray.logprobs import chunked_logprobs
from lwz_ray.packing import Segment


class PolicyModel(torch.nn.Module):
    """Wraps a causal language model so that its output head runs inside one forward, as FSDP needs it."""

    lm: Any
    """A transformers PreTrainedModel."""

    def __init__(self, lm: torch.nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens

    @classmethod
    def load(
        cls, path: str, chunk_tokens: int, trust_remote_code: bool, activation_checkpointing: bool
    ) -> "PolicyModel":
        """Load a Hugging Face folder in its stored dtype (memory-mapped safetensors only)."""
        lm = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto",
            attn_implementation=register(),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        lm.config.use_cache = False
        if activation_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.train()
        return cls(lm, chunk_tokens)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder layers, the unit of sharding."""
        return self.lm.get_decoder().layers

    def forward(
        self,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: tuple[Segment, ...],
        positions: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logprobs of `targets` at `positions` of one packed row, and entropies, both [num_positions].

        token_ids, position_ids: int64 [1, num_tokens]; positions, targets: int64 [num_positions].
        """
        decoder = self.lm.get_decoder()
        hidden = decoder(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, segments=segments
        ).last_hidden_state
        head = self.lm.get_output_embeddings().weight
        return chunked_logprobs(hidden[0, positions], head, targets, temperature, self.chunk_tokens)
