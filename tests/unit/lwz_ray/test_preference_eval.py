"""Measures of scored pairs, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from lwz_ray.preference_eval import (
    PairScores,
    accuracies,
    by_length_difference,
    calibration,
    evaluate_pairs,
    fit_length_rule,
    length_baseline,
    length_correlation,
    matched,
    outcomes,
    pearson,
    ranks,
)

RESAMPLES = 400


def pair_scores(gaps, chosen_words, rejected_words, sources=None, kinds=None) -> PairScores:
    gaps = np.asarray(gaps, dtype=np.float64)
    sources = sources or [f"s{i}" for i in range(len(gaps))]
    return PairScores(
        gaps,
        np.zeros(len(gaps)),
        np.asarray(chosen_words),
        np.asarray(rejected_words),
        sources,
        kinds or [None] * len(gaps),
    )


def test_a_tie_counts_half():
    assert outcomes(np.array([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_accuracy_over_pairs_over_kinds_and_by_kind():
    gaps = np.array([1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    kinds = ["cut", "cut", "cut", "cut", "mix", None]
    found = accuracies(gaps, ["a", "a", "b", "b", "a", "b"], kinds, RESAMPLES, 7)
    assert (found["num_pairs"], found["num_sources"]) == (6, 2)
    assert found["accuracy"]["mean"] == pytest.approx(4 / 6)
    assert found["macro_accuracy"]["mean"] == pytest.approx((0.75 + 1.0 + 0.0) / 3)
    # The worst first; an unnamed kind has a name.
    assert [(r["kind"], r["num_pairs"], r["mean"]) for r in found["by_kind"]] == [
        ("unnamed", 1, 0.0), ("cut", 4, 0.75), ("mix", 1, 1.0),
    ]  # fmt: skip


def test_the_interval_draws_whole_sources():
    """Source a is always right, b always wrong: a draw of two sources gives 0, one half or 1, nothing between."""
    gaps = np.array([1.0] * 50 + [-1.0] * 50)
    found = accuracies(gaps, ["a"] * 50 + ["b"] * 50, [None] * 100, RESAMPLES, 1)
    assert found["accuracy"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
    # With a hundred sources of one pair each, the same pairs are known far better.
    apart = accuracies(gaps, [str(i) for i in range(100)], [None] * 100, RESAMPLES, 1)
    assert 0.38 < apart["accuracy"]["low"] < 0.45
    assert 0.55 < apart["accuracy"]["high"] < 0.62
    again = accuracies(gaps, [str(i) for i in range(100)], [None] * 100, RESAMPLES, 1)
    assert again == apart


def test_a_model_that_only_likes_long_texts_is_seen():
    """Scores are word counts: right where the chosen text is longer, wrong where it is shorter."""
    chosen, rejected = np.array([100, 100, 100, 40, 60]), np.array([30, 80, 95, 100, 100])
    found = by_length_difference(pair_scores(chosen - rejected, chosen, rejected), RESAMPLES, 1)
    assert [(r["chosen_is"], r["num_pairs"], r["accuracy"]["mean"]) for r in found] == [
        ("much shorter", 1, 0.0), ("shorter", 1, 0.0), ("alike", 1, 1.0), ("longer", 1, 1.0), ("much longer", 1, 1.0),
    ]  # fmt: skip
    assert [r["mean_word_difference"] for r in found] == [-60.0, -40.0, 5.0, 20.0, 70.0]


def test_the_edges_of_the_length_bins_belong_to_the_inner_bin():
    # Differences of exactly 10% and 50% of the longer text, both ways, and texts without words.
    chosen, rejected = [100, 90, 100, 50, 0], [90, 100, 50, 100, 0]
    found = by_length_difference(pair_scores([1.0] * 5, chosen, rejected), RESAMPLES, 1)
    assert [(r["chosen_is"], r["num_pairs"]) for r in found] == [("shorter", 1), ("alike", 3), ("longer", 1)]


def test_ranks_share_their_mean_where_values_are_equal():
    assert ranks(np.array([10.0, 5.0, 10.0, 1.0])).tolist() == [3.5, 2.0, 3.5, 1.0]


def test_pearson_and_spearman():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, np.array([1.0, 4.0, 9.0, 16.0])) == pytest.approx(0.984374, abs=1e-6)
    assert pearson(ranks(x), ranks(np.array([1.0, 4.0, 9.0, 16.0]))) == pytest.approx(1.0)
    assert pearson(x, np.ones(4)) is None


def test_correlation_with_length_knows_no_order_of_the_pair():
    """A score equal to the words correlates fully; one that ignores them, not at all, though pairs are ordered."""
    chosen, rejected = np.array([100, 80, 50]), np.array([60, 90, 20])
    longer = PairScores(chosen * 0.1, rejected * 0.1, chosen, rejected, list("abc"), [None] * 3)
    assert length_correlation(longer) == {
        "score_pearson": pytest.approx(1.0), "score_spearman": pytest.approx(1.0),
        "gap_pearson": pytest.approx(1.0), "gap_spearman": pytest.approx(1.0),
    }  # fmt: skip
    # The chosen text wins by 1 in each pair, twice longer by 10 words and twice shorter by 10.
    even = pair_scores([1.0] * 4, [20, 20, 10, 10], [10, 10, 20, 20])
    assert length_correlation(even)["gap_pearson"] == pytest.approx(0.0)
    assert length_correlation(even)["gap_spearman"] == pytest.approx(0.0)


def test_matched_pairs_differ_by_at_most_the_share():
    scores = pair_scores([1.0, -1.0, 1.0, 1.0], [100, 100, 100, 100], [90, 110, 80, 130], kinds=["cut"] * 4)
    found = matched(scores, 0.1, RESAMPLES, 1)
    assert (found["num_pairs"], found["accuracy"]["mean"], found["match_words"]) == (2, 0.5, 0.1)
    assert matched(scores, 0.01, RESAMPLES, 1) == {"num_pairs": 0, "match_words": 0.01}


def test_the_length_rule_is_fitted_on_training_pairs():
    assert fit_length_rule(np.array([10, 10, 10, 5]), np.array([5, 5, 10, 9])) == (1, 0.625)
    assert fit_length_rule(np.array([5, 5, 10]), np.array([9, 9, 5])) == (-1, pytest.approx(2 / 3))


def test_the_baseline_sees_only_the_length():
    """The scores are all right; the rule from training ("longer wins") is wrong on the kind `repeat`."""
    scores = pair_scores([1.0] * 4, [50, 50, 50, 50], [30, 50, 70, 80], kinds=["cut", "shuffle", "repeat", "repeat"])
    found = length_baseline(scores, (np.array([9, 9]), np.array([4, 2])), RESAMPLES, 1)
    assert (found["rule"], found["train_accuracy"]) == ("longer wins", 1.0)
    assert found["accuracy"]["mean"] == pytest.approx(1.5 / 4)
    assert found["macro_accuracy"]["mean"] == pytest.approx(0.5)
    assert [(r["kind"], r["mean"]) for r in found["by_kind"]] == [("repeat", 0.0), ("shuffle", 0.5), ("cut", 1.0)]


def test_calibration_is_folded_at_one_half():
    """sigma(log 4) = 0.8, and a little more: four of five right is well said, all right is too modest."""
    gap = math.log(4) + 0.01
    perfect = calibration(np.array([gap, gap, gap, gap, -gap]))
    (row,) = perfect["bins"]
    assert (row["low"], row["high"], row["num_pairs"], row["accuracy"]) == (
        pytest.approx(0.8), pytest.approx(0.85), 5, 0.8,
    )  # fmt: skip
    assert row["confidence"] == pytest.approx(0.801595, abs=1e-6)
    assert perfect["expected_error"] == pytest.approx(0.001595, abs=1e-6)
    assert calibration(np.array([gap] * 4))["expected_error"] == pytest.approx(0.198405, abs=1e-6)
    ties = calibration(np.zeros(3))
    assert (ties["expected_error"], ties["mean_confidence"]) == (0.0, 0.5)
    assert [(b["num_pairs"], b["accuracy"]) for b in ties["bins"]] == [(3, 0.5)]
    # A confidence of 1.0 falls into the last bin.
    assert calibration(np.array([800.0]))["bins"][0]["high"] == pytest.approx(1.0)


def test_everything_at_once_on_a_model_that_has_learned_nothing():
    scores = pair_scores([0.0, 0.0], [10, 20], [20, 10], kinds=["cut", "mix"])
    found = evaluate_pairs(scores, 0.1, RESAMPLES, 1)
    assert found["accuracy"]["mean"] == found["macro_accuracy"]["mean"] == 0.5
    assert found["ties"] == 2
    assert found["log_loss"] == pytest.approx(math.log(2))
    assert found["score"] == {"chosen_mean": 0.0, "rejected_mean": 0.0, "std": 0.0}
    assert found["length_correlation"]["score_pearson"] is None
    assert found["matched"]["num_pairs"] == 0


def test_log_loss_by_hand():
    found = evaluate_pairs(pair_scores([math.log(3), -math.log(3)], [1, 2], [3, 4]), 0.1, RESAMPLES, 1)
    assert found["log_loss"] == pytest.approx(0.5 * (math.log(4 / 3) + math.log(4)))


def test_scores_must_be_numbers_and_columns_equal():
    with pytest.raises(ValueError, match="not finite"):
        pair_scores([math.nan], [1], [1])
    with pytest.raises(ValueError, match="equal, non-empty columns"):
        pair_scores([], [], [])
    with pytest.raises(ValueError, match="equal, non-empty columns"):
        pair_scores([1.0], [1, 2], [1])
