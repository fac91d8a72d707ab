"""Laws of packing documents that hold for any sizes, weights and length of a sequence."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lwz_ray.corpus import CorpusBatches, load_corpus
from tests.corpus_parts import changed, word_tokenizer, words, write_documents

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[list[int]], list[float], int, int]:
    """Draw the words of each document of each source, the weights, the sequence's length, and sequences a step."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    weights = draw(st.lists(st.sampled_from([1.0, 3.0, 7.5, 99.0]), min_size=len(sizes), max_size=len(sizes)))
    return sizes, weights, draw(st.integers(2, 48)), draw(st.integers(1, 4))


def build(folder: Path, sizes: list[list[int]], weights: list[float], length: int, sequences: int) -> CorpusBatches:
    """Write the documents; the words of each are told apart by source and document."""
    sources = {}
    for s, documents in enumerate(sizes):
        texts = [words(400 * s + 45 * d, n) for d, n in enumerate(documents)]
        path = write_documents(folder / f"s{s}.jsonl", texts)
        sources[f"s{s}"] = {"path": path, "split": "train", "column": "text", "weight": weights[s]}
    section = {"sources": sources, "sequences_per_step": sequences, "held_out_documents": 0}
    return load_corpus(changed("pretrain", section, length), word_tokenizer())


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_sequences_are_full_and_shares_stay_within_half_a_piece(drawn: tuple[list[list[int]], list[float], int, int]):
    sizes, weights, length, sequences = drawn
    with tempfile.TemporaryDirectory() as folder:
        found = build(Path(folder), *drawn)
        longest = [min(max(documents), length - 1) for documents in sizes]
        whole = sum(weights)
        slack = sum(longest) / 2
        for _ in range(12):
            samples = found.next()
            tokens = sum(s.num_tokens for s in samples)
            assert sequences * (length - 1) <= tokens <= sequences * length
            assert all(2 <= s.num_tokens <= length for s in samples)
            given_tokens = [c["tokens_given"] for c in found.counts.values()]
            total = sum(given_tokens)
            for got, weight, piece in zip(given_tokens, weights, longest, strict=True):
                share = weight / whole
                assert abs(got - share * total) <= piece / 2 + share * slack + 1e-6


@settings(max_examples=25, deadline=None)
@given(corpora(), st.integers(0, 6))
def test_a_state_taken_anywhere_goes_on_with_the_same_tokens(
    drawn: tuple[list[list[int]], list[float], int, int], steps: int
):
    with tempfile.TemporaryDirectory() as folder:
        straight, resumed = build(Path(folder), *drawn), build(Path(folder), *drawn)
        for _ in range(steps):
            straight.next()
        resumed.restore(straight.state())
        for _ in range(3):
            wanted = [(s.source, s.token_ids.tolist()) for s in straight.next()]
            assert [(s.source, s.token_ids.tolist()) for s in resumed.next()] == wanted
