"""What the meter says of the project's own examples, with each semantic measure."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from lwz_ray.config import FormatRewardConfig
from lwz_ray.errors import UserError
from rewards.format import repetition_penalty
from rewards.repetition_meter import RepetitionMeter

EXAMPLES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "repetition_examples.jsonl").read_text("utf-8").splitlines()
]
IDS = [f"{e['id']}" for e in EXAMPLES]
# What the embedding, and of Chinese the characters, do not see.
MISSED_BY_MINHASH = {"rephrased_en_harbour", "rephrased_zh_reading"}
MISSED_BY_BOTH = {"rephrased_zh_reading"}


def format_config(**changes: Any) -> FormatRewardConfig:
    """Return the config of conf/rewards/default.yaml with some values changed."""
    default: dict[str, Any] = {
        "partial_credit": False,
        "repetition_ngram": 4,
        "repetition_free": 0.1,
        "refrain_free": 0.35,
        "semantic": "minhash",
        "minhash_threshold": 0.25,
        "embedding_path": None,
        "embedding_threshold": 0.85,
    }
    return FormatRewardConfig(**(default | changes))


@pytest.fixture(scope="module")
def embedding_meter(embedder_dir: Path) -> RepetitionMeter:
    return RepetitionMeter(format_config(semantic="embedding", embedding_path=str(embedder_dir)))


def penalty(meter: RepetitionMeter, example: dict[str, Any]) -> float:
    return repetition_penalty(meter.measure(example["text"], example["language"]).combined, 0.1)


def expect(kind: str, value: float, is_missed: bool) -> None:
    """Near-copies cost 0.4 and more, rephrased passages 0.1 and more, refrains and plain texts nothing."""
    if kind == "near_copy":
        assert 0.4 < value < 0.7
    elif kind == "rephrased" and not is_missed:
        assert 0.1 < value < 0.7
    else:
        assert value == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_the_default_tells_the_examples_apart(example: dict[str, Any]) -> None:
    value = penalty(RepetitionMeter(format_config()), example)
    expect(example["class"], value, example["id"] in MISSED_BY_MINHASH)


def test_embeddings_see_the_rephrased_passages_too(embedding_meter: RepetitionMeter) -> None:
    for example in EXAMPLES:
        expect(example["class"], penalty(embedding_meter, example), example["id"] in MISSED_BY_BOTH)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_are_of_each_class(language: str) -> None:
    mine = [e for e in EXAMPLES if e["language"] == language]
    assert {k: sum(e["class"] == k for e in mine) >= 3 for k in ("near_copy", "rephrased", "refrain", "plain")} == {
        "near_copy": True,
        "rephrased": True,
        "refrain": True,
        "plain": True,
    }


def test_without_a_semantic_measure_only_words_count() -> None:
    example = next(e for e in EXAMPLES if e["id"] == "near_en_market")
    scores = RepetitionMeter(format_config(semantic="none")).measure(example["text"], "en")
    assert scores.semantic == 0.0
    assert scores.combined == scores.ngram == pytest.approx(0.34, abs=0.01)


def test_a_chorus_counts_where_refrains_have_no_allowance() -> None:
    song = next(e for e in EXAMPLES if e["id"] == "refrain_en_song")["text"]
    allowed = RepetitionMeter(format_config()).measure(song, "en")
    counted = RepetitionMeter(format_config(refrain_free=0.0)).measure(song, "en")
    # A chorus of 29 words that comes back twice, in a song of 225.
    assert allowed.refrain == pytest.approx(58 / 225)
    assert (counted.refrain, counted.sentence) == (0.0, pytest.approx(58 / 225))
    assert allowed.combined < 0.02 < 0.25 < counted.combined


@pytest.mark.parametrize(
    ("text", "language"),
    [("I do not know what to say to you. " * 100, "en"), ("我不知道该对你说什么。" * 100, "zh"), ("na\n" * 300, "en")],
)
def test_a_loop_is_penalised_almost_wholly(text: str, language: Literal["en", "zh"]) -> None:
    assert repetition_penalty(RepetitionMeter(format_config()).measure(text, language).combined, 0.1) > 0.95


@pytest.mark.parametrize("text", ["", "\n\n", "A few words only.", "……"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_short_texts_repeat_nothing(text: str, language: Literal["en", "zh"], embedding_meter: RepetitionMeter) -> None:
    assert embedding_meter.measure(text, language).combined == 0.0


def test_threads_share_a_meter(embedding_meter: RepetitionMeter) -> None:
    texts = [e["text"] for e in EXAMPLES if e["language"] == "en"][:6]
    alone = [embedding_meter.measure(text, "en") for text in texts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda text: embedding_meter.measure(text, "en"), texts * 2, timeout=120))
    assert together == alone * 2


def test_a_missing_model_is_refused_when_the_meter_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json there"):
        RepetitionMeter(format_config(semantic="embedding", embedding_path=str(tmp_path)))
