"""One frozen, typed config tree. Unknown keys are errors; cross-checks name the fields and the numbers.

The tree is plain pydantic: `launch/` composes YAML into a dict and validates it here. Defaults live in
`conf/`, not here, so that one place shows what a run uses; optional fields are the exception.
"""

from typing import Literal, Self

from pydantic import model_validator

from lwz_ray.config_algorithm import AlgorithmConfig, CriticConfig, check_critic
from lwz_ray.config_base import Node, NonNegative, Positive
from lwz_ray.config_corpus import CorpusConfig, SftConfig
from lwz_ray.config_evaluate import BenchmarkConfig, EvaluateConfig, GenerateConfig, ReportConfig
from lwz_ray.config_failures import FailuresConfig
from lwz_ray.config_pipeline import PipelineConfig
from lwz_ray.config_rewards import (
    COMPONENTS,
    Component,
    FormatRewardConfig,
    FunctionRewardConfig,
    JudgeConfig,
    LengthRewardConfig,
    OnFailure,
    RewardsConfig,
    WatchConfig,
    WritingRewardConfig,
)
from lwz_ray.config_rooms import (
    ActorsConfig,
    ClusterConfig,
    LearnersConfig,
    LoraConfig,
    RepetitionStopConfig,
    WeightsConfig,
)
from lwz_ray.config_run import (
    ColumnsConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TemplateConfig,
    TrackingConfig,
)
from lwz_ray.config_stages import CurateConfig, PreferenceConfig
from lwz_ray.staleness import check_no_deadlock

__all__ = [
    "COMPONENTS",
    "ActorsConfig",
    "AlgorithmConfig",
    "BenchmarkConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "Component",
    "Config",
    "CorpusConfig",
    "CriticConfig",
    "CurateConfig",
    "DataConfig",
    "EvalConfig",
    "EvaluateConfig",
    "FailuresConfig",
    "FormatRewardConfig",
    "FunctionRewardConfig",
    "GenerateConfig",
    "JudgeConfig",
    "LearnersConfig",
    "LengthRewardConfig",
    "LoraConfig",
    "ModelConfig",
    "Node",
    "OnFailure",
    "OptimizerConfig",
    "PipelineConfig",
    "PreferenceConfig",
    "RepetitionStopConfig",
    "ReportConfig",
    "RewardsConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "TemplateConfig",
    "TrackingConfig",
    "WatchConfig",
    "WeightsConfig",
    "WritingRewardConfig",
]


class Config(Node):
    """A whole run, resolved."""

    stage: Literal["rl", "train_rm", "pretrain", "sft", "curate", "generate", "evaluate", "pipeline", "scale", "report"]
    recipe: Literal["degradations", "chat_logs", "distill_plans"] | None
    """What stage=curate makes."""
    seed: NonNegative
    steps: Positive
    dry_run: bool
    groups_per_step: Positive
    group_size: Positive
    max_staleness: NonNegative
    on_stale: Literal["wait", "drop"]
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig
    template: TemplateConfig
    sampling: SamplingConfig
    actors: ActorsConfig
    rewards: RewardsConfig
    judge: JudgeConfig
    watch: WatchConfig
    preference: PreferenceConfig
    curate: CurateConfig
    corpus: CorpusConfig
    sft: SftConfig
    generate: GenerateConfig
    benchmark: BenchmarkConfig
    evaluate: EvaluateConfig
    pipeline: PipelineConfig
    report: ReportConfig
    algorithm: AlgorithmConfig
    lora: LoraConfig
    optimizer: OptimizerConfig
    critic: CriticConfig
    learners: LearnersConfig
    weights: WeightsConfig
    failures: FailuresConfig
    tracking: TrackingConfig
    cluster: ClusterConfig

    @property
    def samples_per_step(self) -> int:
        return self.groups_per_step * self.group_size

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: GRPO compares samples of one prompt, a group needs at least 2"
            )
        need = self.data.max_prompt_tokens + self.sampling.max_tokens
        writes = self.stage in ("rl", "curate", "generate", "evaluate", "pipeline")
        if writes and need > self.model.max_length_tokens:
            raise ValueError(
                f"data.max_prompt_tokens={self.data.max_prompt_tokens} + "
                f"sampling.max_tokens={self.sampling.max_tokens} = {need} exceeds "
                f"model.max_length_tokens={self.model.max_length_tokens}: lower one of the first two"
            )
        trains = self.stage in ("rl", "train_rm", "pretrain", "sft", "pipeline")
        if trains and self.model.max_length_tokens > self.learners.microbatch_tokens:
            raise ValueError(
                f"learners.microbatch_tokens={self.learners.microbatch_tokens} is below "
                f"model.max_length_tokens={self.model.max_length_tokens}: the longest sample would not fit a microbatch"
            )
        if self.algorithm.minibatches > self.groups_per_step:
            raise ValueError(
                f"algorithm.minibatches={self.algorithm.minibatches} exceeds groups_per_step={self.groups_per_step}"
            )
        if writes and self.learners.device == "cuda" and self.actors.num_gpus < self.actors.tensor_parallel_size:
            raise ValueError(
                f"actors.num_gpus={self.actors.num_gpus:g} is below "
                f"actors.tensor_parallel_size={self.actors.tensor_parallel_size}: each shard needs a GPU"
            )
        if self.algorithm.uses_critic and self.stage == "rl":
            check_critic(self.critic, self.steps, self.learners.device, self.learners.sequence_parallel)
        if self.lora.rank and self.stage == "train_rm":
            raise ValueError(
                f"lora.rank={self.lora.rank} with stage=train_rm: adapters are trained by stage=rl only; use lora=none"
            )
        if self.weights.transport == "nccl" and self.learners.device != "cuda":
            raise ValueError("weights.transport=nccl needs learners.device=cuda; on CPUs use auto, shm or object_store")
        check_no_deadlock(self)
        return self

    @model_validator(mode="after")
    def _scorer_checks(self) -> Self:
        if self.rewards.weights.get("judge", 0.0) > 0 and self.judge.base_url is None:
            raise ValueError("rewards.weights.judge > 0 but judge.base_url is null: name the judge's endpoint")
        if self.judge.base_url is not None and self.judge.mode == "pairwise_group" and self.eval.samples_per_prompt < 2:
            raise ValueError(
                f"judge.mode=pairwise_group compares samples of one prompt, but eval.samples_per_prompt="
                f"{self.eval.samples_per_prompt}: use 2 or more"
            )
        second = self.watch.second_scorer
        if second == "judge" and self.judge.base_url is None:
            raise ValueError("watch.second_scorer=judge but judge.base_url is null: name the judge's endpoint")
        if second == "function" and self.rewards.function.path is None:
            raise ValueError("watch.second_scorer=function but rewards.function.path is null: name a function")
        if second is not None and self.rewards.weights.get(second, 0.0) > 0:
            raise ValueError(
                f"watch.second_scorer={second} has rewards.weights.{second}={self.rewards.weights[second]:g}: a scorer "
                "that steers learning cannot watch it; give it weight 0"
            )
        if self.stage == "curate" and self.recipe is None:
            raise ValueError("stage=curate needs a recipe: degradations, chat_logs or distill_plans")
        return self
