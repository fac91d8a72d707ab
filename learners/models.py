"""The networks that a learner trains, by objective."""

import torch

from learners.lora import add_adapters
from learners.policy_model import PolicyModel
from learners.reward_model import RewardModel
from learners.sequence_parallel import join_sequence_group
from learners.settings import LearnerSettings
from learners.value_model import ValueModel

OBJECTIVES = ("policy", "language_model", "critic", "preference")
"""The first two train the same network."""
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_model(settings: LearnerSettings) -> PolicyModel | RewardModel | ValueModel:
    """Load the network in its stored dtype, whole, on the CPU; equal on every rank.

    All kinds have `.layers`, the unit of sharding, and parameters named `lm.<Hugging Face name>`.
    """
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"objective={settings.objective!r}: use one of {', '.join(OBJECTIVES)}")
    path, trust, checkpointing = settings.model_path, settings.trust_remote_code, settings.activation_checkpointing
    sequence = join_sequence_group(settings.sequence_parallel, settings.timeout_s)
    kernels = (settings.attention, settings.liger, sequence)
    if settings.objective == "preference":
        return RewardModel.load(path, trust, checkpointing, settings.seed, *kernels)
    if settings.objective == "critic":
        return ValueModel.load(path, trust, checkpointing, *kernels)
    model = PolicyModel.load(path, settings.logprob_chunk_tokens, trust, checkpointing, *kernels)
    if settings.lora is not None:
        add_adapters(model.lm, settings.lora, settings.seed)
    return model
