"""Measure the repetition measures on the project's own examples: `python -m benchmarks.repetition_table`.

Prints two Markdown tables: how the kinds of text are told apart, and what long texts cost.
"""

import argparse
import json
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from launch.compose import compose
from lwz_ray.config import FormatRewardConfig
from lwz_ray.text import count_words
from rewards.format import repetition_penalty
from rewards.repetition import RepetitionScores
from rewards.repetition_meter import RepetitionMeter

EXAMPLES = Path("tests/data/repetition_examples.jsonl")
KINDS = ("near_copy", "rephrased", "refrain", "plain")
METHODS = ("none", "minhash", "embedding")
NUM_TOKENS = 14_000
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Example:
    """One text of the data file."""

    name: str
    kind: str
    language: Literal["en", "zh"]
    text: str


def read_examples(path: Path) -> list[Example]:
    """Read the data file: JSON lines with id, class, language, kind (what it is, in words) and text."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Example(row["id"], row["class"], row["language"], row["text"]) for row in rows]


def make_meters(models: Path) -> dict[str, RepetitionMeter]:
    """Return a meter for each value of `rewards.format.semantic`, all else as in the default config."""
    return {name: RepetitionMeter(settings(models, f"rewards.format.semantic={name}")) for name in METHODS}


def settings(models: Path, *words: str) -> FormatRewardConfig:
    """Return the default config, the embedding model's folder named, with some values changed."""
    return compose([f"rewards.format.embedding_path={models}/all-MiniLM-L6-v2", *words]).rewards.format


def kinds_table(examples: Sequence[Example], models: Path, meters: dict[str, RepetitionMeter]) -> Iterator[str]:
    """Yield a row for each kind and language: mean (lowest to highest) of each share, and who is penalised."""
    default = settings(models)
    strict = RepetitionMeter(settings(models, "rewards.format.refrain_free=0.0"))
    yield (
        "| kind | language | texts | set aside | 4-grams | minhash | embedding "
        "| penalty: none | penalty: minhash | | penalty: embedding | | penalty: minhash, `refrain_free=0` |"
    )
    yield "|" + "---|" * 13
    for kind in KINDS:
        for language in ("en", "zh"):
            texts = [e for e in examples if (e.kind, e.language) == (kind, language)]
            scores = {
                name: [meter.measure(e.text, e.language) for e in texts]
                for name, meter in (meters | {"strict": strict}).items()
            }
            penalties = {
                name: [repetition_penalty(s.combined, default.repetition_free) for s in found]
                for name, found in scores.items()
            }
            cells = [
                spread([s.refrain for s in scores["minhash"]]),
                spread([s.ngram for s in scores["minhash"]]),
                spread([s.semantic for s in scores["minhash"]]),
                spread([s.semantic for s in scores["embedding"]]),
                spread(penalties["none"]),
                spread(penalties["minhash"]),
                positive(penalties["minhash"]),
                spread(penalties["embedding"]),
                positive(penalties["embedding"]),
                spread(penalties["strict"]),
            ]
            yield f"| {kind} | {language} | {len(texts)} | {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Return "mean (lowest to highest)", or "0" where all round to it."""
    if max(values) < 0.005:
        return "0"
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def positive(values: Sequence[float]) -> str:
    """Return how many values are above 0, as "3 of 4"."""
    return f"{sum(v > 0 for v in values)} of {len(values)}"


def long_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """Return two texts of `NUM_TOKENS`: technical prose that comes with Python, and a loop."""
    prose = "\n\n".join(pydoc_data.topics.topics.values())
    loop = "The lamp had burned all night above the harbour, and nobody could say who had lit it. " * 2000
    return {
        "Python's language reference": cut_to_tokens(prose, tokenizer),
        "a sentence in a loop": cut_to_tokens(loop, tokenizer),
    }


def cut_to_tokens(text: str, tokenizer: Tokenizer) -> str:
    """Return the beginning of a text that makes `NUM_TOKENS` tokens."""
    offsets = tokenizer.encode(text[: 20 * NUM_TOKENS], add_special_tokens=False).offsets
    return text[: offsets[NUM_TOKENS - 1][1]]


def times_table(texts: dict[str, str], meters: dict[str, RepetitionMeter]) -> Iterator[str]:
    """Yield a row for each long text and method: best time of a few, and what was measured."""
    yield f"| text of {NUM_TOKENS:,} tokens | words | semantic | seconds | 4-grams | sentences | passages | set aside |"
    yield "|---|---|---|---|---|---|---|---|"
    for title, text in texts.items():
        for name, meter in meters.items():
            seconds, scores = best_time(meter, text, 1 if name == "embedding" else REPEATS)
            shares = (scores.ngram, scores.sentence, scores.semantic, scores.refrain)
            measured = " | ".join(f"{share:.2f}" for share in shares)
            yield f"| {title} | {count_words(text):,} | {name} | {seconds:.2f} | {measured} |"


def best_time(meter: RepetitionMeter, text: str, repeats: int) -> tuple[float, RepetitionScores]:
    """Return the shortest of `repeats` measurements in seconds, and what they found."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        scores = meter.measure(text, "en")
        times.append(time.perf_counter() - start)
    return min(times), scores


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description="Tables of docs/repetition.md.")
    parser.add_argument("--models", type=Path, default=Path("models"), help="what `make setup` wrote (default: models)")
    parser.add_argument("--examples", type=Path, default=EXAMPLES, help=f"JSON lines (default: {EXAMPLES})")
    parser.add_argument("--detail", action="store_true", help="a line for each text on standard error")
    words = parser.parse_args()
    meters = make_meters(words.models)
    examples = read_examples(words.examples)
    if words.detail:
        for example in examples:
            for name, meter in meters.items():
                print(example.name, name, meter.measure(example.text, example.language), file=sys.stderr)
    print(*kinds_table(examples, words.models, meters), sep="\n", end="\n\n")
    tokenizer = Tokenizer.from_file(str(words.models / "SmolLM2-135M-Instruct" / "tokenizer.json"))
    print(*times_table(long_texts(tokenizer), meters), sep="\n")


if __name__ == "__main__":
    main()
