"""Held-out perplexity: numbers worked out by hand."""

import math

import numpy as np
import pytest

from lwz_ray.perplexity import HeldOutScores, compare, measure, nll_of, scores_of
from lwz_ray.records import TokenFacts, TrainSample


def scores(nll: list[float]) -> HeldOutScores:
    return HeldOutScores(np.asarray(nll), np.asarray([10, 30, 60]), np.asarray([0, 1, 1]), np.arange(3))


def sample(trained: list[bool]) -> TrainSample:
    nothing = np.zeros(len(trained), np.float32)
    return TrainSample(np.arange(len(trained), dtype=np.int32), 1, np.asarray(trained), nothing, nothing, 0.1, source=1)


def test_tokens_weigh_alike():
    found = measure(scores([20.0, 90.0, 90.0]), ("a", "b", "c"), 2000, 0)
    assert (found["num_texts"], found["num_tokens"]) == (3, 100)
    assert found["loss"]["mean"] == 2.0
    assert found["perplexity"]["mean"] == pytest.approx(7.389056)
    # The texts' own means are 2, 3 and 1.5: no draw lies outside of them, and draws of one text alone are common.
    assert (found["loss"]["low"], found["loss"]["high"]) == pytest.approx((1.5, 3.0))
    assert found["perplexity"]["high"] == pytest.approx(math.exp(found["loss"]["high"]))
    rows = [(r["source"], r["num_texts"], r["num_tokens"], r["mean"]) for r in found["by_source"]]
    assert rows == [("a", 1, 10, 2.0), ("b", 2, 90, 2.0)]
    assert found["by_source"][1]["perplexity"] == pytest.approx(7.389056)
    assert (found["by_source"][0]["low"], found["by_source"][0]["high"]) == (2.0, 2.0)


def test_pieces_of_one_text_are_drawn_together():
    # Two texts of 100 tokens in 10 pieces each; within a text all pieces are alike.
    nll, texts = np.repeat([10.0, 30.0], 10), np.repeat([0, 1], 10)
    pieces = HeldOutScores(nll, np.full(20, 10), np.zeros(20, np.int64), texts)
    whole = HeldOutScores(np.asarray([100.0, 300.0]), np.full(2, 100), np.zeros(2, np.int64), np.arange(2))
    found, wanted = (measure(s, ("a",), 500, 3) for s in (pieces, whole))
    assert found == wanted
    # One of four draws takes the first text twice, another the second: the interval knows two texts and not twenty.
    assert found["loss"] == {"mean": 2.0, "low": 1.0, "high": 3.0}
    assert (found["num_texts"], found["by_source"][0]["num_texts"]) == (2, 2)
    gap = compare(pieces, HeldOutScores(nll - texts, pieces.tokens, pieces.source_of, texts), ("a",), 500, 3)
    assert gap["loss"] == pytest.approx({"mean": -0.05, "low": -0.1, "high": 0.0})


def test_a_difference_keeps_pairs():
    # Every text by 0.1 nats a token: the spread between texts does not matter.
    gap = compare(scores([20.0, 90.0, 90.0]), scores([19.0, 87.0, 84.0]), ("a", "b"), 500, 0)
    assert gap["loss"] == pytest.approx({"mean": -0.1, "low": -0.1, "high": -0.1})
    assert [(r["source"], round(r["mean"], 6)) for r in gap["by_source"]] == [("a", -0.1), ("b", -0.1)]
    other = HeldOutScores(np.ones(3), np.asarray([10, 30, 61]), np.asarray([0, 1, 1]), np.arange(3))
    with pytest.raises(ValueError, match="the same held-out samples"):
        compare(scores([1.0, 1.0, 1.0]), other, ("a", "b"), 10, 0)


def test_scores_are_summed_over_trained_tokens_only():
    samples = [sample([False, True, True]), sample([False, False, True, False])]
    facts = [TokenFacts(old_logprobs=np.asarray([9.0, -1.0, -2.5], np.float32)),
             TokenFacts(old_logprobs=np.asarray([9.0, 9.0, -4.0, 9.0], np.float32))]  # fmt: skip
    found = scores_of(samples, [0, 0], nll_of(samples, facts))
    assert (found.nll.tolist(), found.tokens.tolist(), found.source_of.tolist()) == ([3.5, 4.0], [2, 1], [1, 1])
    with pytest.raises(ValueError, match="sample 1 of 2 has no logprobs"):
        nll_of(samples, [facts[0], TokenFacts()])
    broken = TokenFacts(old_logprobs=np.asarray([0.0, np.nan, -2.0], np.float32))
    with pytest.raises(ValueError, match="1 of 2 held-out samples have no finite loss"):
        nll_of(samples, [broken, facts[1]])
    with pytest.raises(ValueError, match="without a trained token"):
        scores_of([sample([False, False])], [0], np.zeros(1))
