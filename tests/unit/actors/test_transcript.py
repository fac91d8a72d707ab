"""Putting a sample together: pieces, the cut at a loop, and what is kept of tokens, logprobs and versions."""

from collections.abc import Sequence

import numpy as np
import pytest

from actors.repetition_stop import RepetitionRule, SentenceWatch
from actors.transcript import Transcript
from lwz_ray.records import VersionSpan

RULE = RepetitionRule(max_pattern_tokens=4, min_repeats=3, min_looping_tokens=9, check_every_tokens=4)
SPANS = [VersionSpan(0, 7, 4), VersionSpan(7, 100, 5)]


def as_bytes(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def written(text: str, piece: int, watch: SentenceWatch | None) -> tuple[Transcript, list[bool]]:
    """Feed a text of one token a byte, a few characters at once."""
    transcript, told = Transcript(watch), []
    for start in range(0, len(text), piece):
        part = text[start : start + piece]
        first = len(as_bytes(text[:start]))
        told.append(transcript.add(as_bytes(part), [-float(first + i) for i in range(len(as_bytes(part)))], part))
    return transcript, told


def test_a_text_without_a_loop_is_kept_whole() -> None:
    text = "One. Two. Three. Four. Five."
    transcript, told = written(text, 5, SentenceWatch(RULE))
    done = transcript.completion("stop", [VersionSpan(0, 28, 2)], decode)
    assert (done.text, done.finish_reason, done.num_tokens) == (text, "stop", 28)
    assert not any(told)
    assert done.token_ids.dtype == np.int32 and done.rollout_logprobs.dtype == np.float32
    assert done.version_spans == (VersionSpan(0, 28, 2),)


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_loop_is_cut_at_its_third_time_however_far_the_engine_went_on(piece: int) -> None:
    transcript, told = written("Go. " + "I am so tired. " * 50, piece, SentenceWatch(RULE))
    assert sum(told) == 1
    done = transcript.completion("abort", SPANS, decode)
    assert done.text == "Go. " + "I am so tired. " * 2 + "I am so tired."
    assert (done.finish_reason, done.num_tokens) == ("repetition", 48)
    assert done.rollout_logprobs.tolist() == [-float(i) for i in range(48)]
    assert done.version_spans == (VersionSpan(0, 7, 4), VersionSpan(7, 48, 5))


def test_a_span_beyond_the_cut_is_left_out() -> None:
    transcript, _ = written("I am so tired. " * 50, 5, SentenceWatch(RULE))
    done = transcript.completion("abort", [VersionSpan(0, 60, 4), VersionSpan(60, 750, 5)], decode)
    assert done.version_spans == (VersionSpan(0, 44, 4),)


def test_a_character_of_several_tokens_is_not_cut_through() -> None:
    transcript, _ = written("我很累了。" * 20, 3, SentenceWatch(RULE))
    done = transcript.completion("abort", SPANS, decode)
    assert done.text == "我很累了。" * 3
    assert done.num_tokens == 45  # three bytes a character


def test_without_a_watch_nothing_is_cut() -> None:
    transcript, told = written("I am so tired. " * 50, 5, None)
    assert not any(told)
    assert transcript.completion("length", SPANS, decode).num_tokens == 750
