"""The critic in the plan of a run: the memory of one of its ranks."""

from dataclasses import replace

from launch.memory import Estimate
from launch.memory_learner import learner_estimate
from launch.plan_rm import scalar_shape
from launch.shapes import ModelShape, shape_of
from lwz_ray.config import Config


def critic_estimate(config: Config, policy: ModelShape) -> Estimate:
    """Estimate one critic rank: a learner's terms for its own ranks, without logits, publication and adapters."""
    critic = config.critic
    shape = policy if critic.path is None else shape_of("critic.path", critic.path)
    ranks = {"ranks": critic.ranks, "num_cpus": critic.num_cpus, "num_gpus": critic.num_gpus}
    alone = config.model_copy(
        update={
            "learners": config.learners.model_copy(update=ranks),
            "lora": config.lora.model_copy(update={"rank": 0}),
        }
    )
    return replace(learner_estimate(alone, scalar_shape(shape)), title="critic rank")
