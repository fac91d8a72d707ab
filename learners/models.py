"""The networks that a learner trains, by objective."""

import torch

from learners.policy_model import PolicyModel
from learners.reward_model import RewardModel
from learners.settings import LearnerSettings

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_model(settings: LearnerSettings) -> PolicyModel | RewardModel:
    """Load the network in its stored dtype, whole, on the CPU; equal on every rank.

    Both kinds have `.layers`, the unit of sharding, and parameters named `lm.<Hugging Face name>`.
    """
    if settings.objective == "preference":
        return RewardModel.load(
            settings.model_path, settings.trust_remote_code, settings.activation_checkpointing, settings.seed
        )
    if settings.objective == "policy":
        return PolicyModel.load(
            settings.model_path,
            settings.logprob_chunk_tokens,
            settings.trust_remote_code,
            settings.activation_checkpointing,
        )
    raise ValueError(f"objective={settings.objective!r}: use policy or preference")
