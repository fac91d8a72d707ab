"""Packed sequences: every token once, shares by count, held-out documents, and a place that resumes to the token."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwz_ray.corpus import CorpusBatches, load_corpus, split_documents, trained_tokens
from lwz_ray.corpus_encoding import DocumentEncoder, cut
from lwz_ray.errors import UserError
from tests.corpus_parts import EOS, changed, word_tokenizer, words, write_documents


def source(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "split": "train", "column": "text", "weight": 1.0, **more}


def batches(sources: dict[str, Any], length: int = 8, **section: Any) -> CorpusBatches:
    settings = {"sources": sources, "sequences_per_step": 1, "held_out_documents": 0, "shuffle": False, **section}
    return load_corpus(changed("pretrain", settings, length), word_tokenizer())


def ids(first: int, num: int) -> list[int]:
    return [i + 2 for i in range(first, first + num)]


def test_documents_are_packed_with_boundaries_and_cut_ones_go_on(tmp_path: Path):
    path = write_documents(tmp_path / "a.jsonl", [words(0, 4), words(10, 6), words(20, 9)])
    found = batches({"a": source(path)}, held_out_documents=0)
    first, second, third = found.next(), found.next(), found.next()
    # Sequence 1: the first document and its end, then the first three tokens of the second.
    assert [s.token_ids.tolist() for s in first] == [[*ids(0, 4), EOS], ids(10, 3)]
    # The second goes on with its last token as context; the sequence is full to the eighth token.
    assert [s.token_ids.tolist() for s in second] == [[*ids(12, 4), EOS], ids(20, 3)]
    assert [s.token_ids.tolist() for s in third] == [[*ids(22, 7), EOS]]
    for samples in (first, second, third):
        assert sum(s.num_tokens for s in samples) == 8
        trained = sum(s.num_trained for s in samples)
        for sample in samples:
            assert (sample.num_prompt_tokens, sample.loss_mask.tolist()[:2]) == (1, [False, True])
            assert sample.loss_mask[1:].all()
            assert sample.token_weight == pytest.approx(1 / trained)


def test_every_token_but_a_documents_first_is_trained_once_an_epoch(tmp_path: Path):
    sizes = [3, 1, 17, 8, 30, 2, 5]
    path = write_documents(tmp_path / "a.jsonl", [words(100 * i, n) for i, n in enumerate(sizes)])
    found = batches({"a": source(path)}, length=7, shuffle=True, sequences_per_step=2)
    seen: list[int] = []
    while found.counts["a"]["epochs"] < 1:
        for sample in found.next():
            seen += sample.token_ids[1:].tolist()
    expected = sorted(t for i, n in enumerate(sizes) for t in [*ids(100 * i + 1, n - 1), EOS])
    # The last step may already take from the next epoch: what came first is the whole of this one.
    assert sorted(seen[: len(expected)]) == expected
    assert len(expected) == sum(sizes)


def test_a_single_token_of_room_stays_free(tmp_path: Path):
    path = write_documents(tmp_path / "a.jsonl", [words(0, 6), words(10, 6)])
    found = batches({"a": source(path)})
    assert [s.num_tokens for s in found.next()] == [7]


def test_shares_are_kept_by_count(tmp_path: Path):
    main = write_documents(tmp_path / "main.jsonl", [words(i, 20) for i in range(40)])
    rare = write_documents(tmp_path / "rare.jsonl", [words(i, 9) for i in range(5)])
    found = batches({"main": source(main, weight=99.0), "rare": source(rare)}, length=64, sequences_per_step=4)
    for _ in range(40):
        found.next()
        counts = found.counts
        total = sum(c["tokens_given"] for c in counts.values())
        # Half a piece of its own, and half a piece of each other source times its weight.
        gap = counts["rare"]["tokens_given"] - 0.01 * total
        assert abs(gap) <= 9 / 2 + 0.01 * (20 + 9) / 2
    assert counts["rare"]["share"] == 0.01
    assert counts["rare"]["given_share"] == pytest.approx(0.01, abs=0.0005)
    assert counts["rare"]["epochs"] > 2
    assert 9500 < total < 10240


def test_state_resumes_to_the_token_through_json(tmp_path: Path):
    paths = {n: write_documents(tmp_path / f"{n}.jsonl", [words(i, 3 + i) for i in range(12)]) for n in "ab"}
    sources = {"a": source(paths["a"], weight=3.0), "b": source(paths["b"])}
    straight, broken = (batches(sources, length=11, shuffle=True, sequences_per_step=2) for _ in range(2))
    for _ in range(9):
        straight.next()
        broken.next()
    state = json.loads(json.dumps(broken.state()))
    fresh = batches(sources, length=11, shuffle=True, sequences_per_step=2)
    fresh.restore(state)
    broken.next()
    broken.restore(state)
    for _ in range(12):
        wanted = [(s.source, s.token_ids.tolist()) for s in straight.next()]
        assert [(s.source, s.token_ids.tolist()) for s in fresh.next()] == wanted
        assert [(s.source, s.token_ids.tolist()) for s in broken.next()] == wanted
    assert fresh.counts == straight.counts
    assert fresh.counts["a"]["epochs"] > 1


def test_the_digest_changes_with_everything_that_the_order_depends_on(tmp_path: Path):
    path = write_documents(tmp_path / "a.jsonl", [words(i, 5) for i in range(6)])
    other = write_documents(tmp_path / "b.jsonl", [words(i, 5) for i in range(5)] + [words(9, 5)])
    usual = batches({"a": source(path)}, shuffle=True).digest
    assert batches({"a": source(path)}, shuffle=True).digest == usual
    # The same texts from another place are the same data.
    moved = write_documents(tmp_path / "moved.jsonl", [words(i, 5) for i in range(6)])
    assert batches({"a": source(moved)}, shuffle=True).digest == usual
    # So are they where they lie in two files.
    (tmp_path / "two").mkdir()
    write_documents(tmp_path / "two" / "1.jsonl", [words(i, 5) for i in range(4)])
    write_documents(tmp_path / "two" / "2.jsonl", [words(i, 5) for i in range(4, 6)])
    assert batches({"a": source(str(tmp_path / "two"))}, shuffle=True).digest == usual
    # Ranks and microbatches take their parts of a step: another number of them goes on with the same data.
    settings = {"sources": {"a": source(path)}, "sequences_per_step": 1, "held_out_documents": 0, "shuffle": True}
    config = changed("pretrain", settings, 8)
    learners = config.learners.model_copy(update={"ranks": 4, "microbatch_tokens": 64})
    assert load_corpus(config.model_copy(update={"learners": learners}), word_tokenizer()).digest == usual
    changed_ones = [
        batches({"a": source(other)}, shuffle=True),
        batches({"a": source(path)}, shuffle=False),
        batches({"a": source(path)}, shuffle=True, length=9),
        batches({"a": source(path)}, shuffle=True, sequences_per_step=2),
        batches({"a": source(path, weight=2.0)}, shuffle=True),
        batches({"a": source(path)}, shuffle=True, held_out_documents=1),
        batches({"a": source(path)}, shuffle=True, eval_path=write_documents(tmp_path / "e.jsonl", ["w70 w71"])),
        batches({"c": source(path)}, shuffle=True),
    ]
    assert len({usual, *(b.digest for b in changed_ones)}) == 9


def test_the_last_documents_are_held_out_and_so_are_their_copies(tmp_path: Path):
    texts = [words(0, 3), words(50, 12), words(20, 3), words(50, 12)]
    a = write_documents(tmp_path / "a.jsonl", texts)
    b = write_documents(tmp_path / "b.jsonl", [words(50, 12), words(70, 3), words(80, 3)])
    found = batches({"a": source(a), "b": source(b)}, held_out_documents=1)
    assert found.names == ("a", "b")
    # A document of 13 tokens in pieces of at most 8, then one of 4.
    assert [(s.source, s.token_ids.tolist()) for s in found.held_out] == [
        (0, ids(50, 8)),
        (0, [*ids(57, 5), EOS]),
        (1, [*ids(80, 3), EOS]),
    ]
    assert found.held_out_texts == [0, 0, 1]
    assert sum(s.num_trained * s.token_weight for s in found.held_out) == pytest.approx(1)
    told = {n: (c["documents"], c["held_out"], c["copies_of_held_out"]) for n, c in found.counts.items()}
    assert told == {"a": (4, 1, 1), "b": (3, 1, 1)}
    trained = {t for _ in range(6) for s in found.next() for t in s.token_ids.tolist()}
    assert trained.isdisjoint(ids(50, 12))


def test_held_out_documents_of_their_own_file_have_a_name_of_their_own(tmp_path: Path):
    a = write_documents(tmp_path / "a.jsonl", [words(0, 3), words(10, 3)])
    aside = write_documents(tmp_path / "eval.jsonl", [words(10, 3), words(90, 2)])
    found = batches({"a": source(a)}, eval_path=aside, held_out_documents=5)
    assert found.names == ("a", "held_out")
    assert [s.source for s in found.held_out] == [1, 1]
    assert found.counts["a"]["copies_of_held_out"] == 1
    assert found.counts["held_out"] == {"read": 2, "documents": 2, "bad_rows": 0, "empty": 0}


def test_a_corpus_without_documents_left_is_refused(tmp_path: Path):
    one = write_documents(tmp_path / "one.jsonl", [words(0, 3)])
    with pytest.raises(UserError, match=r"corpus.sources.a: its 1 documents are all held out: give it more"):
        split_documents(changed("pretrain", {"sources": {"a": source(one)}, "held_out_documents": 1}))
    with pytest.raises(UserError, match=r"stage=pretrain needs documents: name a source, such as corpus.sources.books"):
        split_documents(changed("pretrain", {"sources": {}}))
    with pytest.raises(ValueError, match=r"corpus.sources.held_out: the documents of corpus.eval_path have this name"):
        changed("pretrain", {"sources": {"held_out": source(one)}})


def test_a_source_that_would_come_round_too_often_is_refused(tmp_path: Path):
    a = write_documents(tmp_path / "a.jsonl", [words(i, 50) for i in range(10)])
    plans = write_documents(tmp_path / "plans.jsonl", [words(i, 10) for i in range(2)])
    sources = {"a": source(a, weight=3.0), "plans": source(plans)}
    settings = {"sources": sources, "sequences_per_step": 2, "held_out_documents": 0, "max_epochs": 4.0}
    fits = changed("pretrain", settings, 20, steps=8)
    assert trained_tokens(fits) == 320
    assert load_corpus(fits, word_tokenizer()).names == ("a", "plans")
    # 400 tokens, a quarter of them plans: 100 of the 20 that there are.
    with pytest.raises(UserError) as caught:
        load_corpus(changed("pretrain", settings, 20, steps=10), word_tokenizer())
    assert str(caught.value) == (
        "corpus.sources.plans: 25.000% of 400 tokens are 100, but it holds 20: 5.00 epochs, over corpus.max_epochs=4; "
        "give it more documents or less weight, or lower corpus.max_tokens or steps"
    )
    # A token budget below the steps decides: 6 steps of 40 tokens reach 210.
    assert trained_tokens(changed("pretrain", {**settings, "max_tokens": 210}, 20, steps=10)) == 240


def test_a_document_is_text_and_ends_with_the_end_token():
    encoder = DocumentEncoder(word_tokenizer())
    assert encoder.encode("w3 w4").tolist() == [5, 6, EOS]
    # The name of the end token inside a word ends nothing: such a word is one that the tokenizer does not know.
    assert encoder.encode("w3</s>w4").tolist() == [1, EOS]
    assert [piece.tolist() for piece in cut(np.arange(9), 4)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]
    assert [piece.tolist() for piece in cut(np.arange(4), 4)] == [[0, 1, 2, 3]]
    # One token more than a piece holds: the last piece is a token of context and the end.
    assert [piece.tolist() for piece in cut(np.arange(5), 4)] == [[0, 1, 2, 3], [3, 4]]
    nameless = word_tokenizer(10)
    nameless.eos_token = None
    with pytest.raises(UserError, match=r"has no EOS token, so that no document could end"):
        DocumentEncoder(nameless)
