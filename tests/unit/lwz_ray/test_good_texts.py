"""Which texts are good, how a user's are read, and which side of the split a prompt is on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.good_texts import GoodText, Sieve, clean, load_texts, split_prompts, written_text
from lwz_ray.records import Completion, FinishReason, Prompt, VersionSpan

GOOD = "The tide went out. Two boys dug for clams. Nobody called them home."
PROMPT = Prompt("p1", "Write about the tide.", "en", None, 0)


def completion(text: str, finish_reason: FinishReason = "stop") -> Completion:
    return Completion(text, np.zeros(1, np.int32), np.zeros(1, np.float32), finish_reason, (VersionSpan(0, 1, 0),))


def sieve() -> Sieve:
    return Sieve(3, 0.2, lambda text: 0.5 if "again and again" in text else 0.0)


def config(tmp_path: Path, rows: Sequence[Mapping[str, object]], *words: str) -> Config:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return compose(["run=curate_demo", f"curate.texts_path={path}", *words])


def test_every_reason_is_counted_and_samples_keep_their_number():
    texts = [
        None, GOOD, GOOD, GOOD.removesuffix("."), "Tide 潮. Two boys dug. Nobody called.", "Short. Very.",
        "They dug again and again. They dug. The tide came.", "The sea rose. They ran. It was late.",
    ]  # fmt: skip
    good, left_out = sieve().sift(PROMPT, texts)
    assert [(g.sample, g.text[:7]) for g in good] == [(1, "The tid"), (7, "The sea")]
    assert good[0] == GoodText("p1", "Write about the tide.", 1, "en", GOOD)
    assert left_out == {
        "not_closed": 1, "duplicate": 1, "open_end": 1, "other_language": 1, "few_sentences": 1, "repetition": 1,
    }  # fmt: skip


def test_a_completion_counts_where_it_is_closed():
    assert written_text(completion(" A text. \n\n\n\nEnd."), "direct", "", "") == "A text.\n\nEnd."
    assert written_text(completion("A text", "length"), "direct", "", "") is None
    assert written_text(completion("A text.</answer>"), "direct", "<answer>", "</answer>") == "A text."
    assert written_text(completion("A text."), "direct", "<answer>", "</answer>") is None
    assert clean("<answer>One.</answer>") == "One."


def test_a_users_texts_are_grouped_by_prompt(tmp_path: Path):
    rows = [
        {"prompt": "A", "text": GOOD, "id": "x"},
        {"prompt": "写潮水", "text": "潮水退了。"},
        {"prompt": "A", "text": "Another."},
    ]
    found, counts = load_texts(config(tmp_path, rows, "data.languages=[en,zh]"))
    assert [(p.prompt_id, p.language, texts) for p, texts in found] == [
        ("x", "en", [GOOD, "Another."]),
        ("row-1", "zh", ["潮水退了。"]),
    ]
    assert counts == {"read": 3, "bad_rows": 0, "other_language": 0, "kept": 3}


def test_a_bad_row_is_named_or_counted(tmp_path: Path):
    rows = [{"prompt": "A", "text": GOOD}, {"prompt": "B"}, {"prompt": "C", "text": "潮水退了。"}]
    with pytest.raises(UserError, match=r"line 2: column 'text' needs text; .*data.on_bad_row=skip"):
        load_texts(config(tmp_path, rows))
    _, counts = load_texts(config(tmp_path, rows, "data.on_bad_row=skip"))
    assert counts == {"read": 3, "bad_rows": 1, "other_language": 1, "kept": 1}


def test_the_split_has_its_share_and_depends_on_seed_and_ids_alone():
    ids = [f"p{i}" for i in range(40)]
    split = split_prompts(ids, 0.25, seed=1)
    assert Counter(split.values()) == {"train": 30, "heldout": 10}
    assert split == split_prompts(ids[::-1], 0.25, seed=1)
    assert split != split_prompts(ids, 0.25, seed=2)
    assert Counter(split_prompts(["a", "b"], 0.01, seed=1).values()) == {"train": 1, "heldout": 1}
    with pytest.raises(UserError, match="1 prompt; a split by prompt needs at least 2"):
        split_prompts(["a", "a"], 0.25, seed=1)
