"""From one good text to its preference pairs, one a kind; each kind has a random stream of its own."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lwz_ray.config_stages import Kind
from lwz_ray.degradations.copies import insert_copies, plan_copies, repeat
from lwz_ray.degradations.hot import draw_temperature, join_hot, split_head
from lwz_ray.degradations.languages import mix
from lwz_ray.degradations.order import cut, shuffle
from lwz_ray.degradations.passages import split_passages
from lwz_ray.degradations.rewriting import Way, accepts, rewrite_by_rules, tidy
from lwz_ray.degradations.topic import drift
from lwz_ray.good_texts import GoodText
from lwz_ray.text import count_words

MODEL_KINDS: frozenset[Kind] = frozenset(("paraphrase", "hot"))
"""Kinds that the policy model helps to make."""
PLANS, TRIES = 3, 2
"""Passages that a paraphrase tries, and how often the model is asked for one sentence."""
_BY_RULE: Mapping[Kind, Callable[[str, np.random.Generator], str | None]] = {
    "shuffle": shuffle,
    "repeat": repeat,
    "cut": cut,
    "mix": mix,
}


class Writer(Protocol):
    """The policy model at work on good texts; both calls are reproducible by seed."""

    async def rewrite(self, sentence: str, language: str, seed: int) -> str | None:
        """Return the sentence in other words; None where the model did not come to an end."""
        ...

    async def go_on(self, text: GoodText, head: str, rest: str, temperature: float, seed: int) -> str:
        """Return what follows `head`, of about as many words as `rest` or more."""
        ...


@dataclass(frozen=True, slots=True)
class Degraded:
    """What became of one good text."""

    rejected: dict[Kind, str]
    missing: dict[Kind, str]
    """Kind -> why there is no pair of it: `unsuited` (the text does not allow it) or `no_rewrite`."""
    ways: dict[Way, int] = field(default_factory=dict)
    """How many sentences were said in other words by each way."""


def stream(seed: int, text: GoodText, kind: str) -> np.random.Generator:
    """Return the random stream of one kind of one text; it depends on nothing else."""
    digest = hashlib.sha256(f"{seed}/{text.prompt_id}/{text.sample}/{kind}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


async def degrade(
    text: GoodText,
    kinds: Sequence[Kind],
    others: Sequence[GoodText],
    writer: Writer | None,
    seed: int,
    hot_temperature: float,
) -> Degraded:
    """Return the rejected texts of every kind.

    others: good texts of the same side of the split, which drift draws on: those to other prompts in the same language.
    writer: needed for MODEL_KINDS alone.
    """
    donors = [o.text for o in others if o.prompt_id != text.prompt_id and o.language == text.language]
    done = Degraded({}, {})
    for kind in kinds:
        rng = stream(seed, text, kind)
        reason = "unsuited"
        if kind == "drift":
            spoiled = drift(text.text, donors, rng)
        elif kind == "paraphrase":
            assert writer is not None
            spoiled, reason = await _paraphrase(text, writer, rng, done.ways)
        elif kind == "hot":
            assert writer is not None
            spoiled = await _hot(text, writer, hot_temperature, rng)
        else:
            spoiled = _BY_RULE[kind](text.text, rng)
        if spoiled is None or spoiled == text.text:
            done.missing[kind] = reason
        else:
            done.rejected[kind] = spoiled
    return done


def pair_row(text: GoodText, kind: Kind, rejected: str, split: str) -> dict[str, Any]:
    """Return one row of the preference set."""
    return {
        "prompt": text.prompt,
        "chosen": text.text,
        "rejected": rejected,
        "kind": kind,
        "source": text.prompt_id,
        "sample": text.sample,
        "split": split,
        "words_chosen": count_words(text.text),
        "words_rejected": count_words(rejected),
    }


async def _paraphrase(
    text: GoodText, writer: Writer, rng: np.random.Generator, ways: dict[Way, int]
) -> tuple[str | None, str]:
    """Return the text with a passage said again in other words further down, and the reason where there is none."""
    passages = split_passages(text.text)
    reason = "unsuited"
    for _ in range(PLANS):
        plan = plan_copies(passages, rng, most=2)
        if plan is None:
            continue
        said = [await _say_again(passages.sentences[i], text.language, writer, rng) for i in plan.chosen]
        copies = [copy for copy, _ in said if copy is not None]
        if len(copies) == len(said):
            for _, way in said:
                ways[way] = ways.get(way, 0) + 1
            return insert_copies(passages, plan, copies), ""
        reason = "no_rewrite"
    return None, reason


async def _say_again(sentence: str, language: str, writer: Writer, rng: np.random.Generator) -> tuple[str | None, Way]:
    """Ask the model; where its sentence is a copy or about something else, rewrite by rule, checked alike."""
    for _ in range(TRIES):
        answer = await writer.rewrite(sentence, language, int(rng.integers(2**31)))
        if answer is not None and accepts(sentence, tidy(answer)):
            return tidy(answer), "model"
    ruled = rewrite_by_rules(sentence, language, rng)
    return (ruled if accepts(sentence, ruled) else None), "rules"


async def _hot(text: GoodText, writer: Writer, hot_temperature: float, rng: np.random.Generator) -> str | None:
    parts = split_head(text.text, rng)
    if parts is None:
        return None
    temperature = draw_temperature(hot_temperature, rng)
    continuation = await writer.go_on(text, *parts, temperature, int(rng.integers(2**31)))
    return join_hot(*parts, continuation)
