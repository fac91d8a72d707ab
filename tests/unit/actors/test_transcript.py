"""Putting a sample together: pieces, the cut at a loop, and what is kept of tokens, logprobs and versions."""

from collections.abc import Sequence

import numpy as np
import pytest

from actors.repetition_stop import RepetitionRule
from actors.transcript import Transcript, join_spans, resumable
from lwz_ray.records import Completion, VersionSpan

RULE = RepetitionRule(max_pattern_tokens=4, min_repeats=3, min_looping_tokens=9, check_every_tokens=4)
SPANS = [VersionSpan(0, 7, 4), VersionSpan(7, 100, 5)]


def as_bytes(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def written(
    text: str, piece: int, rule: RepetitionRule | None, prior: Completion | None = None
) -> tuple[Transcript, list[bool]]:
    """Feed a text of one token a byte, a few characters at once."""
    transcript, told = Transcript(rule, prior), []
    for start in range(0, len(text), piece):
        part = text[start : start + piece]
        first = len(as_bytes(text[:start]))
        told.append(transcript.add(as_bytes(part), [-float(first + i) for i in range(len(as_bytes(part)))], part))
    return transcript, told


def test_a_text_without_a_loop_is_kept_whole() -> None:
    text = "One. Two. Three. Four. Five."
    transcript, told = written(text, 5, RULE)
    done = transcript.completion("stop", [VersionSpan(0, 28, 2)], decode)
    assert (done.text, done.finish_reason, done.num_tokens) == (text, "stop", 28)
    assert not any(told)
    assert done.token_ids.dtype == np.int32 and done.rollout_logprobs.dtype == np.float32
    assert done.version_spans == (VersionSpan(0, 28, 2),)


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_loop_is_cut_at_its_third_time_however_far_the_engine_went_on(piece: int) -> None:
    transcript, told = written("Go. " + "I am so tired. " * 50, piece, RULE)
    assert sum(told) == 1
    done = transcript.completion("abort", SPANS, decode)
    assert done.text == "Go. " + "I am so tired. " * 2 + "I am so tired."
    assert (done.finish_reason, done.num_tokens) == ("repetition", 48)
    assert done.rollout_logprobs.tolist() == [-float(i) for i in range(48)]
    assert done.version_spans == (VersionSpan(0, 7, 4), VersionSpan(7, 48, 5))


def test_a_span_beyond_the_cut_is_left_out() -> None:
    transcript, _ = written("I am so tired. " * 50, 5, RULE)
    done = transcript.completion("abort", [VersionSpan(0, 60, 4), VersionSpan(60, 750, 5)], decode)
    assert done.version_spans == (VersionSpan(0, 44, 4),)


def test_a_character_of_several_tokens_is_not_cut_through() -> None:
    transcript, _ = written("我很累了。" * 20, 3, RULE)
    done = transcript.completion("abort", SPANS, decode)
    assert done.text == "我很累了。" * 3
    assert done.num_tokens == 45  # three bytes a character


def test_without_a_watch_nothing_is_cut() -> None:
    transcript, told = written("I am so tired. " * 50, 5, None)
    assert not any(told)
    assert transcript.completion("length", SPANS, decode).num_tokens == 750


def prior_of(text: str, *spans: tuple[int, int, int]) -> Completion:
    """A beginning of one token a byte, whose logprobs count down from -1000."""
    ids = np.asarray(as_bytes(text), dtype=np.int32)
    logprobs = -1000.0 - np.arange(len(ids), dtype=np.float32)
    return Completion(text, ids, logprobs, "abort", tuple(VersionSpan(*s) for s in spans or [(0, len(ids), 3)]))


def test_a_text_goes_on_from_its_prior() -> None:
    transcript, _ = written(" Two.", 2, RULE, prior_of("One.", (0, 3, 3), (3, 4, 4)))
    done = transcript.completion("stop", [VersionSpan(0, 2, 4), VersionSpan(2, 5, 6)], decode)
    assert (done.text, done.finish_reason, done.num_tokens) == ("One. Two.", "stop", 9)
    assert bytes(done.token_ids.tolist()) == b"One. Two."
    assert done.rollout_logprobs.tolist() == [-1000.0, -1001.0, -1002.0, -1003.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    assert done.version_spans == (VersionSpan(0, 3, 3), VersionSpan(3, 6, 4), VersionSpan(6, 9, 6))


@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_a_loop_of_sentences_that_began_in_the_prior_is_found(piece: int) -> None:
    transcript, told = written("tired. " + "I am so tired. " * 9, piece, RULE, prior_of("Go. I am so tired. I am so "))
    assert sum(told) == 1
    done = transcript.completion("length", [VersionSpan(0, 142, 5)], decode)
    assert (done.text, done.finish_reason) == ("Go. " + "I am so tired. " * 2 + "I am so tired.", "repetition")
    assert done.version_spans == (VersionSpan(0, 27, 3), VersionSpan(27, 48, 5))


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_loop_of_tokens_over_the_seam_is_found(piece: int) -> None:
    """Patterns of three or four tokens, three times: `abcabcabc` ends after nine tokens, five of them the prior's."""
    transcript, told = written("bcabcabcabc", piece, RULE, prior_of("xabca"))
    assert sum(told) == 1
    done = transcript.completion("length", [VersionSpan(0, 11, 5)], decode)
    assert (done.text, done.finish_reason, done.num_tokens) == ("xabcabcabc", "repetition", 10)


def test_a_loop_of_tokens_without_a_prior_is_left_to_the_engine() -> None:
    transcript, told = written("abcabcabcabc", 1, RULE)
    assert not any(told)
    assert transcript.completion("repetition", [VersionSpan(0, 12, 5)], decode).num_tokens == 12


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I see</answer", "I see"),
        ("I see<", "I see"),
        ("a < b", "a < b"),
        ("I <<</", "I "),  # what is left ends with a beginning of the tag again
        ("", ""),
    ],
)
def test_a_beginning_of_the_stop_string_is_taken_back(text: str, kept: str) -> None:
    back = resumable(prior_of(text), "</answer>", decode)
    assert (back.text, bytes(back.token_ids.tolist()).decode()) == (kept, kept)
    assert back.rollout_logprobs.tolist() == [-1000.0 - i for i in range(len(kept))]
    assert back.version_spans[-1].stop == len(kept)


def test_half_a_character_is_taken_back_and_a_text_without_a_stop_string_stays() -> None:
    whole = prior_of("我很累")
    half = Completion("我很", whole.token_ids[:8], whole.rollout_logprobs[:8], "abort", whole.version_spans)
    back = resumable(half, "</answer>", decode)
    assert (back.text, back.num_tokens, back.version_spans) == ("我很", 6, (VersionSpan(0, 6, 3),))
    assert resumable(whole, "", decode) is whole


def test_spans_are_joined_and_cut() -> None:
    spans = [VersionSpan(0, 3, 4), VersionSpan(3, 5, 4), VersionSpan(5, 9, 5)]
    assert join_spans(spans, 7) == (VersionSpan(0, 5, 4), VersionSpan(5, 7, 5))
    assert join_spans([VersionSpan(0, 4, 7)], 0) == (VersionSpan(0, 0, 7),)
