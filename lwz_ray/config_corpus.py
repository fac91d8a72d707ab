"""Config of `stage=pretrain` and `stage=sft`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Node, NonNegative, Positive, PositiveFloat


class CorpusSourceConfig(Node):
    """One source of documents."""

    path: str
    """A .jsonl, .parquet or .txt file, a folder of them, or hub:owner/name."""
    split: str = "train"
    """Read only for hub: data sets."""
    column: str = "text"
    """Of a row's text; a .txt file is one document."""
    weight: PositiveFloat = 1.0
    """Its share of the trained tokens is weight over the sum of weights: by count, to within a piece of a document."""


class CorpusConfig(Node):
    """`stage=pretrain`: documents packed to the context length, from sources in exact shares."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], CorpusSourceConfig]
    shuffle: bool
    """Documents of a source come in a new order each epoch; false: in the order of the files."""
    eval_path: str | None
    """Held-out documents for perplexity; null: `held_out_documents` of each source, left out of training."""
    held_out_documents: NonNegative
    """The last of each source, by its order."""
    sequences_per_step: Positive
    """Each of model.max_length_tokens."""
    max_tokens: Positive | None
    """Budget: training ends with the step that reaches it, or after `steps`, whichever is first; null: `steps`."""
    max_epochs: PositiveFloat | None
    """A source that would come round more often than this is refused before training; null: no limit."""
    on_bad_row: Literal["error", "skip"]
    lr_schedule: Literal["constant", "linear", "cosine"]
    """After warm-up."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "held_out" in self.sources:
            raise ValueError("corpus.sources.held_out: the documents of corpus.eval_path have this name; use another")
        return self


class SftColumnsConfig(Node):
    """Names of the chat pairs' columns: prompt and answer where both are named, else messages."""

    messages: str | None
    """A list of turns with `role` and `content` (the LongWriter-6k format)."""
    prompt: str | None
    answer: str | None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt is None) != (self.answer is None):
            name, other = ("prompt", "answer") if self.answer is None else ("answer", "prompt")
            raise ValueError(f"sft.columns.{name} is named and sft.columns.{other} is null: name both or neither")
        if self.prompt is None and self.messages is None:
            raise ValueError("sft.columns names no column: name messages, or prompt and answer")
        return self


class SftConfig(Node):
    """`stage=sft`: chat pairs, loss on the assistant's turns only."""

    path: str | None
    split: str
    columns: SftColumnsConfig
    eval_path: str | None
    """Held-out pairs for perplexity; null: `held_out_share` of `path`."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)]
    samples_per_step: Positive
    max_tokens: Positive | None
    """Budget of trained (answer) tokens, as in `corpus.max_tokens`."""
    on_too_long: Literal["error", "drop"]
    """For a conversation over model.max_length_tokens; dropped ones are counted, none is ever cut."""
    on_bad_row: Literal["error", "skip"]
    lr_schedule: Literal["constant", "linear", "cosine"]
