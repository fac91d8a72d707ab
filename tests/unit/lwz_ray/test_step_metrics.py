"""What a step reports of its groups, on two small groups worked out by hand."""

from typing import Any

import numpy as np
import pytest

from lwz_ray.errors import RewardFailure
from lwz_ray.grouping import MadeGroup
from lwz_ray.records import Completion, FinishReason, Group, ParsedText, Prompt, Sample, VersionSpan
from lwz_ray.step_metrics import group_metrics, length_bucket

FAILED = RewardFailure("writing", "replica 1 died", "infrastructure")


def sample(
    prompt: Prompt, words: int, tokens: int, finish: FinishReason, rewards: dict[str, Any], **measures: float
) -> Sample:
    ids = np.zeros(tokens, dtype=np.int32)
    completion = Completion("x", ids, np.zeros(tokens, np.float32), finish, (VersionSpan(0, tokens, 0),))
    parsed = ParsedText(None, "x", finish == "stop", 1.0)
    return Sample(0, 0, prompt, np.zeros(1, np.int32), completion, parsed, words, rewards, measures)


@pytest.fixture
def groups() -> list[MadeGroup]:
    """Return a group with a range and one without, whose length reward abstains."""
    ranged, free = Prompt("a", "Write.", "en", (4, 6), 0), Prompt("b", "Write.", "en", None, 1)
    first = (
        sample(ranged, 4, 10, "stop", {"length": 1.0, "format": 1.0, "writing": 0.25}, repetition=0.5, num_words=4.0),
        sample(ranged, 2, 6, "length", {"length": 0.5, "format": 1.0, "writing": FAILED}, repetition=0.0),
    )
    second = (
        sample(free, 8, 12, "stop", {"format": 1.0, "writing": 0.75}),
        sample(free, 6, 8, "stop", {"format": 0.0, "writing": 0.5}),
    )
    return [MadeGroup(Group(0, ranged, first), 2.0, 0.5, 0), MadeGroup(Group(1, free, second), 4.0, 1.5, 1)]


def test_every_number(groups: list[MadeGroup]) -> None:
    metrics = group_metrics(groups, {"length": 3.0, "writing": 0.0, "format": 1.0}, 20)
    assert metrics == pytest.approx(
        {
            "rollout/mean_words": 5.0,
            "rollout/tokens": 36.0,
            "rollout/tail_ratio": 12 / 9,  # of 6, 8, 10 and 12 tokens
            "rollout/truncated": 0.25,
            "rollout/cut_by_deadline": 0.0,
            "rollout/looped": 0.0,
            "rollout/tokens_saved": 0.0,
            "rollout/well_formed": 0.75,
            "length/upto_100_samples": 2.0,
            "length/upto_100_in_range": 0.5,
            "length/upto_100_reward": 0.75,
            "rollout/repetition": 0.25,  # of the two that were measured
            "rollout/in_range": 0.5,  # of the two with a range: 4 lies in it, 2 does not
            "staleness/mean": 0.5,
            "staleness/max": 1.0,
            "staleness/token_mean": 20 / 36,  # the second group's tokens are one version old
            "staleness/mixed": 0.0,
            "time/generate_s": 3.0,
            "time/generate_max_s": 4.0,
            "time/score_s": 1.0,
            "rewards/length": 0.75,
            "rewards/length_std": 0.25,  # of the one group that has it
            "rewards/length_no_spread": 0.5,
            "rewards/writing": 0.5,  # (0.25 + 0.75 + 0.5) / 3
            "rewards/writing_std": 0.0625,  # 0 and 0.125
            "rewards/writing_no_spread": 0.5,
            "rewards/format": 0.75,
            "rewards/format_std": 0.25,  # 0 and 0.5
            "rewards/format_no_spread": 0.5,
            "rewards/total": 0.75,  # (3 * 0.75 + 1 * 0.75) / 4
            "rewards/failures": 1.0,
            "rewards/abstained": 0.0,
        }
    )


def test_samples_that_lived_through_updates_and_samples_that_were_cut() -> None:
    prompt = Prompt("a", "Write.", "en", None, 0)
    rows = []
    for num, reason, spans in (
        (4, "stop", [(0, 4, 6)]),
        (30, "abort", [(0, 10, 4), (10, 30, 6)]),
        (0, "abort", [(0, 0, 6)]),
        (6, "stop", [(0, 6, 5)]),
    ):
        versions = tuple(VersionSpan(*s) for s in spans)
        ids, logprobs = np.zeros(num, np.int32), np.zeros(num, np.float32)
        text = Completion("x", ids, logprobs, reason, versions)  # type: ignore[arg-type]
        rows.append(Sample(0, 0, prompt, np.zeros(1, np.int32), text, ParsedText(None, "x", True, 1.0), 1))
    # The version being trained is 6: 10 tokens are two versions old, 6 are one.
    metrics = group_metrics([MadeGroup(Group(0, prompt, tuple(rows)), 1.0, 1.0, staleness=2)], {}, 64)
    names = ("staleness/token_mean", "staleness/mixed", "rollout/cut_by_deadline", "rollout/tail_ratio")
    assert [metrics[n] for n in names] == [26 / 40, 0.25, 0.5, 6.0]
    assert metrics["rollout/truncated"] == 0.0


def test_a_reward_nobody_got_is_absent_not_zero(groups: list[MadeGroup]) -> None:
    metrics = group_metrics(groups[1:], {"length": 1.0, "format": 1.0}, 20)
    assert "rewards/length" not in metrics and "rollout/in_range" not in metrics
    assert metrics["rewards/total"] == 0.5


def test_a_looping_sample_is_counted_with_what_it_saved() -> None:
    prompt = Prompt("a", "Write.", "en", (900, 1100), 0)
    rows = (
        sample(prompt, 4, 10, "repetition", {"length": 0.0}),
        sample(prompt, 1000, 20, "stop", {"length": 1.0}),
    )
    metrics = group_metrics([MadeGroup(Group(0, prompt, rows), 1.0, 1.0)], {"length": 1.0}, 64)
    assert metrics["rollout/looped"] == 0.5 and metrics["rollout/tokens_saved"] == 54.0
    assert metrics["length/upto_2000_reward"] == 0.5 and metrics["length/upto_2000_in_range"] == 0.5


def test_a_failure_that_abstains_is_counted_apart() -> None:
    prompt = Prompt("a", "Write.", "en", (1, 3), 0)
    away = RewardFailure("writing", "no answer", "infrastructure", "abstain")
    rows = (sample(prompt, 2, 4, "stop", {"writing": away}), sample(prompt, 2, 4, "stop", {"writing": FAILED}))
    metrics = group_metrics([MadeGroup(Group(0, prompt, rows), 1.0, 1.0)], {"writing": 1.0}, 8)
    assert metrics["rewards/failures"] == 2.0 and metrics["rewards/abstained"] == 1.0


@pytest.mark.parametrize(
    ("high", "name"), [(75, "upto_100"), (100, "upto_100"), (101, "upto_250"), (9000, "above_8000")]
)
def test_buckets_go_by_the_upper_end(high: int, name: str) -> None:
    assert length_bucket(high) == name
