"""The network that is trained: a causal language model that answers with log-probabilities, never logits."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from learners.decoder import made_trainable
from learners.packed_attention import register
from learners.sequence_parallel import SequenceGroup
from lwz_ray.logprobs import chunked_logprobs
from lwz_ray.packing import Segment


class PolicyModel(torch.nn.Module):
    """Wraps a causal language model so that its output head runs inside one forward, as FSDP needs it."""

    lm: Any
    """A transformers PreTrainedModel."""

    def __init__(self, lm: torch.nn.Module, chunk_tokens: int, sequence: SequenceGroup | None = None) -> None:
        """sequence: the ranks that share a row; None: each row is one rank's."""
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens
        self.sequence = sequence

    @classmethod
    def load(
        cls,
        path: str,
        chunk_tokens: int,
        trust_remote_code: bool,
        activation_checkpointing: bool,
        attention: str = "sdpa",
        liger: bool = False,
        sequence: SequenceGroup | None = None,
    ) -> "PolicyModel":
        """Load a Hugging Face folder in its stored dtype (memory-mapped safetensors only).

        attention: sdpa | varlen. liger: with Liger's kernels; raises UserError where they cannot be had.
        """
        lm = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto",
            attn_implementation=register(attention),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        return cls(made_trainable(lm, activation_checkpointing, liger), chunk_tokens, sequence)

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

        token_ids, position_ids: int64 [1, num_tokens]; positions, targets: int64 [num_positions]. All of them are the
        whole row's, and so is what is returned, also where several ranks share the row.
        """
        sequence = self.sequence
        if sequence is not None:
            token_ids, position_ids = sequence.slice_row(token_ids), sequence.slice_row(position_ids)
        hidden = self.lm.get_decoder()(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, segments=segments, sequence=sequence
        ).last_hidden_state[0]
        head = self.lm.get_output_embeddings().weight
        if sequence is None:
            return chunked_logprobs(hidden[positions], head, targets, temperature, self.chunk_tokens)
        mine, local = sequence.own(positions, hidden.shape[0])
        found = chunked_logprobs(hidden[local], head, targets[mine], temperature, self.chunk_tokens)
        logprobs, entropies = sequence.whole(torch.stack(found), mine, positions.shape[0])
        return logprobs.clone(), entropies.clone()  # no views: FSDP hooks what a forward returns
