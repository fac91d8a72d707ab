"""Config of the rewards: components, the pool, the judge, and what happens when one fails."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import (
    Node,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    check_replicas,
    check_resources,
)

Component = Literal["length", "writing", "format", "judge", "function"]
COMPONENTS: tuple[Component, ...] = ("length", "writing", "format", "judge", "function")
OnFailure = Literal["retry", "abstain", "drop_group", "fail"]


class LengthRewardConfig(Node):
    """The paper's length reward; the rule for L_max is ours."""

    l_max_factor: Annotated[float, Field(ge=1)]
    """L_max = factor * L_upper, at least L_upper + 1 …"""
    l_max_cap: Positive | None
    """… and at most this many words (still at least L_upper + 1); null: no cap."""
    on_missing_range: Literal["error", "drop", "abstain"]
    """For a request with no range in the data and none in its words."""


class FormatRewardConfig(Node):
    """Structure plus a penalty for repeated content; thresholds are ours (the paper leaves them open)."""

    partial_credit: bool
    """Graded structure (a base model must find the tags) instead of all or nothing."""
    repetition_ngram: Positive
    """Words (CJK: characters) per n-gram of the repetition measure."""
    repetition_free: Annotated[float, Field(ge=0, lt=1)]
    """Share of repeated content that costs nothing."""
    refrain_free: Annotated[float, Field(ge=0, le=1)]
    """Lines of verse that return word for word are set aside, up to this share of the text; 0: none are."""
    semantic: Literal["none", "minhash", "embedding"]
    """Count passages that resemble an earlier one too: by their characters, or (English) by their meaning as well."""
    minhash_threshold: Share
    """Jaccard similarity of character n-grams from which a passage counts as repeated."""
    embedding_path: str | None
    """Folder of the sentence-embedding model; Chinese is compared by characters alone."""
    embedding_threshold: Share
    """Cosine from which a passage counts as repeated."""


class WritingRewardConfig(Node):
    """A Hugging Face sequence-classification folder with one output, served by the reward pool."""

    path: str | None
    """null: no writing reward."""
    engine: Literal["transformers", "vllm"]
    max_length_tokens: Positive
    batch_size: Positive
    dtype: Literal["bfloat16", "float32"]
    kv_cache_mib: Positive
    memory_utilization: Share
    window_overlap_tokens: NonNegative
    """An answer over the model's context is scored in windows that share this many tokens."""
    max_windows: Positive
    """A longer answer is scored in this many windows spread evenly over it; the coverage is reported."""
    aggregation: Literal["mean", "min"]
    """Of the windows' scores: mean weighted by the windows' tokens, or the worst."""


class FunctionRewardConfig(Node):
    """A user's own scorer."""

    path: str | None
    """`package.module:name` or `package.module.name` of `def f(prompt, answer) -> float`, sync or async."""
    concurrency: Positive
    """Calls at a time; a sync function runs in threads."""


class RewardsConfig(Node):
    """Reward components, their weights, and the pool of reward-model Ray actors."""

    replicas: Positive
    """At the start; stage=scale changes it while the run goes on."""
    min_replicas: Positive
    max_replicas: Positive | None
    """null: as many as the cluster has room for."""
    resources: dict[str, PositiveFloat]
    """Ray's custom resources of one replica, which bind it to nodes that offer them."""
    num_cpus: PositiveFloat
    num_gpus: NonNegativeFloat
    threads: Positive
    weights: dict[Component, NonNegativeFloat]
    """0: measured and logged, never in the advantage."""
    on_failure: dict[Component, OnFailure]
    """retry: again up to `max_retries` times, then drop the group. abstain: leave the component out of the sample."""
    deadline_s: dict[Component, PositiveFloat]
    """Of one sample's score, retries included (for scores that compare a group: of the group's)."""
    max_retries: Positive
    retry_wait_s: PositiveFloat
    """Before the first retry; doubles with each."""
    max_failures_in_a_row: Positive
    """Of one component; then the run fails, whatever `on_failure` says."""
    length: LengthRewardConfig
    format: FormatRewardConfig
    writing: WritingRewardConfig
    function: FunctionRewardConfig
    start_timeout_s: PositiveFloat
    request_timeout_s: PositiveFloat
    """Of one attempt at one batch of the reward pool."""

    @property
    def active(self) -> tuple[str, ...]:
        """Components that steer learning, in a fixed order."""
        return tuple(k for k in COMPONENTS if self.weights.get(k, 0.0) > 0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        check_replicas("rewards", self.replicas, self.min_replicas, self.max_replicas)
        check_resources("rewards", self.resources)
        if not self.active:
            raise ValueError(f"rewards.weights={self.weights}: every weight is 0, nothing to learn from")
        if self.weights.get("writing", 0.0) > 0 and self.writing.path is None:
            raise ValueError("rewards.weights.writing > 0 but rewards.writing.path is null: name a model folder")
        if self.weights.get("function", 0.0) > 0 and self.function.path is None:
            raise ValueError("rewards.weights.function > 0 but rewards.function.path is null: name a function")
        if self.format.semantic == "embedding" and self.format.embedding_path is None:
            raise ValueError("rewards.format.semantic=embedding but rewards.format.embedding_path is null")
        for name in ("on_failure", "deadline_s"):
            missing = [k for k in COMPONENTS if k not in getattr(self, name)]
            if missing:
                raise ValueError(f"rewards.{name} lacks {', '.join(missing)}: name every component")
        return self


class JudgeConfig(Node):
    """A generative judge behind an OpenAI-compatible endpoint; off while `base_url` is null."""

    base_url: str | None
    """Such as http://127.0.0.1:8000/v1 (vLLM's server, or any)."""
    model: str | None
    api_key_env: str | None
    """Name of the environment variable that holds the key; null: the endpoint asks for none."""
    mode: Literal["pointwise", "pairwise_reference", "pairwise_group"]
    """A rubric's score; against the data's reference answer; against a random member of the group (Writing-Zero)."""
    rubric: str
    """What the judge looks at, in words."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)]
    """Lowest and highest pointwise score; mapped to [0, 1]."""
    both_orders: bool
    """Ask each pair twice with the order swapped; halves position bias, doubles the cost."""
    temperature: NonNegativeFloat
    max_tokens: Positive
    structured_output: Literal["json_schema", "json_object", "none"]
    """What the endpoint supports; the reply is validated in any case."""
    max_concurrency: Positive
    timeout_s: PositiveFloat
    """Of one request."""
    max_retries: NonNegative
    retry_wait_s: PositiveFloat
    """Before the first retry; doubles with each, or what the server's Retry-After says."""
    price_input: NonNegativeFloat | None
    """Per million prompt tokens, any currency; null: cost is not counted."""
    price_output: NonNegativeFloat | None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.base_url is not None and self.model is None:
            raise ValueError(f"judge.base_url={self.base_url} but judge.model is null: name the model it serves")
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"judge.scale={self.scale}: the lowest score must be below the highest")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError(
                f"judge.price_input={self.price_input} and judge.price_output={self.price_output}: give both or neither"
            )
        return self


class WatchConfig(Node):
    """Limits of the watch for reward games; past one, a warning on the console and in the report. All are ours."""

    min_distinct_2: Share
    max_compression_ratio: PositiveFloat
    """Bytes of the step's answers over their compressed bytes; near-copies compress well."""
    min_opening_entropy: NonNegativeFloat
    """Of the answers' first words over the step's prompts, as a share of the most that is possible."""
    max_copied_from_prompt: Share
    max_length_correlation: Share
    """Of a component other than length with the answers' length, in absolute value."""
    max_no_spread: Share
    """Share of groups in which an active component has no spread."""
    max_driver_share: Share
    """Share of the advantage that one of several active components makes up."""
    max_drift: PositiveFloat
    """Standard deviations by which the writing score has risen more than the second scorer's on the held-out texts."""
    second_scorer: Literal["judge", "function"] | None
    """Component of weight 0 that the writing score is compared with; null: none."""
