"""Pairs from files: what is refused and how it is said, the split, the order, and nothing cut silently."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from launch.compose import compose
from lwz_ray.config import PreferenceConfig
from lwz_ray.errors import UserError
from lwz_ray.pair_encoding import PairEncoder
from lwz_ray.preference_data import PairOrder, by_seed, encode_pairs, load_pairs, prepare_pairs, split_pairs

GOOD = {"prompt": "Describe rain.", "chosen": "Rain falls softly.", "rejected": "Rain rain rain."}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def settings(path: str, **changes: Any) -> PreferenceConfig:
    found = compose(["run=rm_demo"]).preference
    return PreferenceConfig.model_validate(
        {**found.model_dump(), "path": path, "eval_path": None, "pairs_per_step": 2, **changes}
    )


def numbered(sources: int, each: int) -> list[dict[str, Any]]:
    """Return `each` pairs of every source, in file order."""
    return [
        {"prompt": f"Topic {s}", "chosen": f"Good text {s}.", "rejected": f"Bad {s} {k}.", "source": s, "kind": f"k{k}"}
        for s in range(sources)
        for k in range(each)
    ]


def test_columns_are_read_and_optional_ones_may_be_absent(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, "margin": 0.5, "kind": "repeat", "source": 7}])
    found = load_pairs(settings(path), path, "train")
    assert found.counts == {"read": 2, "kept": 2, "bad_rows": 0}
    first, second = found.pairs
    assert (first.source, first.margin, first.kind) == ("Describe rain.", 0.0, None)
    assert (second.source, second.margin, second.kind) == ("7", 0.5, "repeat")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "not JSON at column 2"),
        ("[1]", "a JSON object is needed, got list"),
        ({**GOOD, "prompt": "  "}, "prompt='  ': text is needed"),
        ({**GOOD, "chosen": None}, "chosen=None: text is needed"),
        ({**GOOD, "rejected": ["a"]}, "rejected=['a']: text is needed"),
        ({**GOOD, "rejected": " Rain falls softly. "}, "chosen and rejected are the same text: nothing is preferred"),
        ({**GOOD, "margin": "large"}, "margin='large': needs a number >= 0"),
        ({**GOOD, "margin": -1}, "margin=-1: needs a number >= 0"),
        ({**GOOD, "margin": True}, "margin=True: needs a number >= 0"),
        (
            {"prompt": "x", "chosen": "y"},
            "no column 'rejected' among ['chosen', 'prompt'] (preference.columns.rejected",
        ),
    ],
)
def test_a_bad_row_is_named_or_counted(row: Any, why: str, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [GOOD, row])
    with pytest.raises(UserError) as caught:
        load_pairs(settings(path), path, "train")
    assert str(caught.value).startswith(f"{path}, line 2: {why}")
    assert str(caught.value).endswith("or leave such rows out with preference.on_bad_row=skip")
    found = load_pairs(settings(path, on_bad_row="skip"), path, "train")
    assert found.counts == {"read": 2, "kept": 1, "bad_rows": 1}


def test_a_source_without_pairs_and_a_wrong_column_are_refused(tmp_path: Path):
    empty = write(tmp_path / "empty.jsonl", ["{"])
    with pytest.raises(UserError, match=r"holds no preference pair \(1 bad_rows\)"):
        load_pairs(settings(empty, on_bad_row="skip"), empty, "train")
    path = write(tmp_path / "a.jsonl", [GOOD])
    columns = {
        "prompt": "prompt",
        "chosen": "chosen",
        "rejected": "rejected",
        "margin": "m2",
        "kind": None,
        "source": None,
    }
    with pytest.raises(
        UserError, match=r"preference.columns.margin='m2': no row of .* has it, there are chosen, prompt"
    ):
        load_pairs(settings(path, columns=columns), path, "train")


def test_sources_stay_on_one_side_and_the_seed_decides(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", numbered(10, 3))
    config = settings(path, held_out_share=0.2)
    found = load_pairs(config, path, "train")
    train, held_out = split_pairs(config, 1, found, None)
    assert (len(train), len(held_out)) == (24, 6)
    assert {p.source for p in train} & {p.source for p in held_out} == set()
    assert split_pairs(config, 1, found, None) == (train, held_out)
    drawn = {frozenset(p.source for p in split_pairs(config, seed, found, None)[1]) for seed in range(6)}
    assert len(drawn) > 1
    # However small the share, something is held out, and something is left.
    assert len({p.source for p in split_pairs(settings(path, held_out_share=0.001), 1, found, None)[1]}) == 1
    assert len({p.source for p in split_pairs(settings(path, held_out_share=0.999), 1, found, None)[0]}) == 1


def test_one_source_cannot_be_split_and_a_shared_one_is_refused(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", numbered(1, 3))
    found = load_pairs(settings(one), one, "train")
    with pytest.raises(UserError, match=r"holds pairs of one source only \('0'\), nothing can be held out"):
        split_pairs(settings(one), 1, found, None)
    with pytest.raises(UserError, match=r"1 of its sources are also in preference.path \(such as '0'\)"):
        split_pairs(settings(one, eval_path=one), 1, found, found)


def test_the_order_keeps_sources_together_and_shuffles_them_each_epoch():
    sources = ["a", "a", "b", "b", "c", "c", "a"]
    order = PairOrder(sources, 3)
    epochs = [order.indices(7 * e, 7 * e + 7) for e in range(8)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
        names = [sources[i] for i in epoch]
        assert len([n for i, n in enumerate(names) if i == 0 or names[i - 1] != n]) == 3
        assert [i for i in epoch if sources[i] == "a"] == [0, 1, 6]
    assert len({tuple(e) for e in epochs}) > 1
    # Any position by itself, in a new order: what a resume needs.
    assert [PairOrder(sources, 3).index(p) for p in (20, 3, 55)] == [epochs[2][6], epochs[0][3], epochs[7][6]]
    with pytest.raises(ValueError, match="counted from 0"):
        order.index(-1)


@pytest.fixture(scope="module")
def encoder(tiny_model_dir: Path) -> PairEncoder:
    return PairEncoder(AutoTokenizer.from_pretrained(tiny_model_dir))


def test_tokens_share_the_head_and_are_never_cut(encoder: PairEncoder, tmp_path: Path):
    rows = [GOOD, {**GOOD, "rejected": "rain " * 40, "source": "long"}]
    path = write(tmp_path / "a.jsonl", rows)
    config = settings(path)
    pairs = load_pairs(config, path, "train").pairs
    whole = encode_pairs(config, pairs, encoder, 512)
    assert whole.counts == {"pairs": 2, "sources": 2, "kept": 2, "dropped_too_long": 0, "left_out": 0}
    for pair, tokens in zip(pairs, whole.encoded, strict=True):
        for text, ids in ((pair.chosen, tokens.chosen), (pair.rejected, tokens.rejected)):
            assert [*tokens.head, *ids] == encoder.encode(pair.prompt, text).token_ids
        assert tokens.weight == 0.5
    assert whole.num_tokens == sum(2 * len(e.head) + len(e.chosen) + len(e.rejected) for e in whole.encoded)
    longest = [encoder.encode(p.prompt, p.rejected).num_tokens for p in pairs]
    assert longest[0] < longest[1]
    exact = encode_pairs(config, pairs, encoder, longest[1])
    assert exact.counts["dropped_too_long"] == 0
    short = encode_pairs(config, pairs, encoder, longest[1] - 1)
    assert short.counts == {"pairs": 2, "sources": 1, "kept": 1, "dropped_too_long": 1, "left_out": 0}
    assert short.pairs == pairs[:1]
    with pytest.raises(UserError, match=rf"of source 'long' has a text of {longest[1]} tokens with its request, over"):
        encode_pairs(settings(path, on_too_long="error"), pairs, encoder, longest[1] - 1)


def test_both_sides_from_one_file_and_from_two(encoder: PairEncoder, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", numbered(10, 3))
    train, held_out, rows = prepare_pairs(settings(path, max_eval_pairs=4), 1, encoder, 512)
    assert rows == {"read": 30, "kept": 30, "bad_rows": 0}
    assert train.counts == {"pairs": 24, "sources": 8, "kept": 24, "dropped_too_long": 0, "left_out": 0}
    assert held_out.counts == {"pairs": 6, "sources": 2, "kept": 4, "dropped_too_long": 0, "left_out": 2}
    assert len({p.source for p in held_out.pairs[:3]}) == 1
    other = write(tmp_path / "b.jsonl", [{**GOOD, "source": "elsewhere"}])
    train, held_out, rows = prepare_pairs(settings(path, eval_path=other), 1, encoder, 512)
    assert (len(train.pairs), len(held_out.pairs), rows["read"]) == (30, 1, 31)


def test_what_leaves_nothing_to_train_or_to_hold_out_is_refused(encoder: PairEncoder, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", numbered(10, 3))
    with pytest.raises(UserError, match=r"no training pair is left: all 24 have a text over model.max_length_tokens=5"):
        prepare_pairs(settings(path), 1, encoder, 5)
    with pytest.raises(UserError, match=r"preference.pairs_per_step=25, but there are 24 training pairs"):
        prepare_pairs(settings(path, pairs_per_step=25), 1, encoder, 512)


def test_the_held_out_order_is_by_source_and_by_seed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", numbered(6, 2))
    pairs = load_pairs(settings(path), path, "train").pairs
    assert by_seed(pairs, 1) == by_seed(pairs, 1)
    assert sorted(p.rejected for p in by_seed(pairs, 1)) == sorted(p.rejected for p in pairs)
    assert len({tuple(p.source for p in by_seed(pairs, s)) for s in range(5)}) > 1
