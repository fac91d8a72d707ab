"""Config of the recipes of `stage=curate` beside `degradations`."""

from typing import Annotated, Literal

from pydantic import Field

from lwz_ray.config_base import Language, Node, NonNegative, Positive, Share

LogFormat = Literal["wildchat", "lmsys"]


class LogLanguagesConfig(Node):
    """Languages that are taken from the sources of a format; null: those of `data.languages`."""

    wildchat: Annotated[list[Language], Field(min_length=1)] | None
    lmsys: Annotated[list[Language], Field(min_length=1)] | None


class ChatLogsConfig(Node):
    """`recipe=chat_logs`: conversations become writing requests with a word range."""

    paths: list[str]
    """Chat logs: .jsonl or .parquet files, or hub:owner/name."""
    split: str
    format: Literal["auto", "wildchat", "lmsys"]
    """auto: told by the columns of the first row."""
    languages: LogLanguagesConfig
    asked: Literal["engine", "endpoint"]
    """Who is asked for need and range: model.path in an engine of this run, or the endpoint of `judge`."""
    max_rows: Positive | None
    """First rows of each source; null: all."""
    max_request_words: Positive
    """Longer requests (pasted material) are left out."""
    max_attempts: Positive
    """Of a reply that cannot be read."""
    max_reply_tokens: Positive
    """Of one reply; a judge that thinks first needs thousands."""
    max_upper_words: Positive
    """Ranges beyond are dropped."""
    max_width_words: Positive
    """Of a range; wider ones are dropped."""
    granularity_words: Positive
    """Ends of a range that the model names are multiples of it; one that the request states is taken as stated."""
    minhash_threshold: Share
    """Jaccard similarity of word n-grams from which a request is a near-duplicate of an earlier one."""
    drop_flagged: bool
    """Leave out conversations that the data itself flags as toxic or redacted."""
    benchmarks: dict[str, str]
    """Name -> file of benchmark requests that must not be trained on."""
    overlap_ngram: Positive
    """Words per n-gram of the contamination check."""
    overlap_share: Share
    """Share of a benchmark request's n-grams from which a request overlaps with it."""


class PlansConfig(Node):
    """`recipe=distill_plans`: plans of an RL run's samples become documents for `stage=pretrain`."""

    run: str | None
    """Run folder whose samples.jsonl is read."""
    min_reward: Annotated[float, Field(ge=0)]
    """Least length reward of a sample whose plan is taken."""
    min_plan_words: NonNegative
    on_unfinished: Literal["drop", "keep"]
    """For a plan that the engine cut before its end."""
    max_plans: Positive | None
    """Those with the highest length reward, among equals the longest; null: all."""
