"""Config of `stage=generate`, `stage=evaluate` and of comparisons."""

from typing import Annotated, Literal

from pydantic import Field

from lwz_ray.config_base import Node, NonNegativeFloat, Positive, Share

BenchmarkName = Literal["longbench_write", "writingbench", "arena_write"]


class GenerateConfig(Node):
    """`stage=generate`: texts to the prompts of `data`, or to one request."""

    text: str | None
    """One request: the text streams to the terminal; null: the prompts of `data`."""
    num_prompts: Positive | None
    """First prompts of `data`; null: all."""
    samples_per_prompt: Positive


class BenchmarkConfig(Node):
    """Which benchmark `stage=evaluate` runs, and where its files are."""

    name: BenchmarkName
    path: str | None
    """The benchmark's requests, as its authors publish them; they are not part of this package."""
    baselines: dict[str, str]
    """arena_write: model name -> .jsonl of its answers."""
    requirements: str | None
    """writingbench: folder of the published subsets by requirement (style, format, length); null: no such scores."""
    num_requests: Positive | None
    """First requests; null: all. Results of fewer than all are marked as such."""
    judge_temperature: NonNegativeFloat
    judge_top_p: Share


class EvaluateConfig(Node):
    """`stage=evaluate`: how texts are made and scored."""

    samples_per_request: Positive
    texts_path: str | None
    """A texts.jsonl that is there already, of stage=generate or of another system; null: model.path writes them."""
    judge_path: str | None
    """A local model as judge, in place of judge.base_url."""
    judge_max_length_tokens: Positive
    bootstrap_resamples: Annotated[int, Field(ge=20)]
    """Of fewer draws 2.5% are none, and a group of one request may be in no draw at all."""
    max_cost: NonNegativeFloat | None
    """Refuse to start where the estimated cost of judging is above; null: no limit."""
    anchor: str | None
    """arena_write: the baseline whose rating is fixed; null: the first by name."""
    anchor_rating: Annotated[float, Field(gt=0)]
    degeneration_repetition: Share
    """A text that repeats this share of itself has degenerated, and so has one that the engine stopped for looping."""


class ReportConfig(Node):
    """`stage=report`: one run's page again, or several runs side by side."""

    runs: list[str]
    """Folders of evaluations to compare; empty: the report of run.name."""
