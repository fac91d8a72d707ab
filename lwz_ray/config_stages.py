"""Config of the stages beside reinforcement learning."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Node, NonNegativeFloat, Positive, PositiveFloat, Share
from lwz_ray.config_curate import ChatLogsConfig, PlansConfig

Kind = Literal["shuffle", "repeat", "paraphrase", "cut", "drift", "mix", "hot"]


class PreferenceColumnsConfig(Node):
    """Names of the preference set's columns; null where it has none."""

    prompt: str
    chosen: str
    rejected: str
    margin: str | None
    kind: str | None
    """What is wrong with the rejected text; accuracy is reported by it."""
    source: str | None
    """Pairs of one source stay on one side of the split; null: by prompt."""


class PreferenceConfig(Node):
    """`stage=train_rm`: Bradley-Terry training of a scalar head on preference pairs."""

    path: str
    """Pairs: a .jsonl or .parquet file, or hub:owner/name."""
    split: str
    eval_path: str | None
    """Held-out pairs; null: `held_out_share` of the sources of `path`."""
    eval_split: str
    held_out_share: Annotated[float, Field(gt=0, lt=1)]
    columns: PreferenceColumnsConfig
    on_bad_row: Literal["error", "skip"]
    pairs_per_step: Positive
    max_eval_pairs: Positive | None
    """The first pairs of the held-out sources, by a seeded order; null: all."""
    on_too_long: Literal["error", "drop"]
    """For a pair of which a text exceeds model.max_length_tokens; dropped ones are counted, none is ever cut."""
    center_coefficient: NonNegativeFloat
    """Weight of mean((r_chosen + r_rejected)^2), which keeps the scores around 0 (Eisenstein et al. 2023)."""
    match_words: Annotated[float, Field(ge=0, lt=1)]
    """Texts of a pair whose words differ by at most this share count as matched in length."""
    lr_schedule: Literal["constant", "linear"]
    """After warm-up: constant, or linear to 0 at the last step."""


class CurateConfig(Node):
    """`stage=curate`: the keys outside of `chat_logs` and `plans` are those of recipe degradations."""

    texts_path: str | None
    """The user's good texts (columns prompt, text; optional id); null: the policy model writes them to `data`."""
    num_prompts: Positive | None
    """First prompts of `data` to write to; null: all."""
    samples_per_prompt: Positive
    """Texts the model writes to one prompt."""
    min_sentences: Annotated[int, Field(ge=2)]
    """Shorter texts have no order to shuffle: left out and counted."""
    max_repetition: Share
    """Texts that repeat more of themselves are not good: left out and counted."""
    kinds: Annotated[list[Kind], Field(min_length=1)]
    hot_temperature: PositiveFloat
    """Of the high-temperature continuation."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)]
    """Of the prompts; all texts and pairs of a prompt stay on one side."""
    chat_logs: ChatLogsConfig
    plans: PlansConfig

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"curate.kinds={self.kinds} names a kind twice")
        return self
