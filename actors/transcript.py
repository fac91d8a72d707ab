"""What one sample has written so far, put together from the pieces that engines stream."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from actors.repetition_stop import RepetitionRule, SentenceWatch, ends_in_loop
from lwz_ray.records import Completion, FinishReason, VersionSpan

Decode = Callable[[Sequence[int]], str]
"""Text of the first tokens of a completion."""


class Transcript:
    """Tokens, logprobs and text of one sample, watched for loops; with a prior it begins with that.

    An engine that goes on from a prior takes it for a part of the prompt. What it looks for in the completion alone
    (patterns of tokens) is looked for here as long as it may reach back into the prior.
    """

    def __init__(self, rule: RepetitionRule | None, prior: Completion | None = None) -> None:
        self._rule = rule
        self._watch = SentenceWatch(rule) if rule else None
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._pieces: list[str] = []
        self._loop_end: int | None = None
        self._num_looping_tokens: int | None = None
        self._num_prior = 0
        self._prior_spans: tuple[VersionSpan, ...] = ()
        if prior is not None:
            self.add(prior.token_ids.tolist(), prior.rollout_logprobs.tolist(), prior.text)
            self._num_prior, self._prior_spans = prior.num_tokens, prior.version_spans

    @property
    def num_tokens(self) -> int:
        """Tokens so far, the prior's and those after a cut included."""
        return len(self._token_ids)

    @property
    def token_ids(self) -> Sequence[int]:
        return self._token_ids

    @property
    def loops(self) -> bool:
        return self._loop_end is not None or self._num_looping_tokens is not None

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], text: str) -> bool:
        """Take the next piece; return True once, when the text has begun to loop."""
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        self._pieces.append(text)
        if self._watch is None or self.loops:
            return False
        self._loop_end = self._watch.add(text)
        self._num_looping_tokens = self._loop_over_the_seam(len(token_ids))
        return self.loops

    def _loop_over_the_seam(self, num_new: int) -> int | None:
        """Return after how many tokens a pattern loops that began in the prior, looking at the newest tokens."""
        if self._rule is None or not self._num_prior:
            return None
        longest = self._rule.pattern_sizes[1] * self._rule.repeats
        first = len(self._token_ids) - num_new + 1
        for end in range(first, min(len(self._token_ids), self._num_prior + longest) + 1):
            if ends_in_loop(self._token_ids[max(0, end - longest) : end], self._rule):
                return end
        return None

    def completion(
        self, finish_reason: FinishReason, version_spans: Sequence[VersionSpan], decode: Decode
    ) -> Completion:
        """Return the sample, cut where its loop was found.

        version_spans: of what was written after the prior, counted from there. The cut depends on the text alone, not
        on how far the engine had gone on when it heard of it.
        """
        num_kept, text = len(self._token_ids), "".join(self._pieces)
        if self.loops:
            num_kept, text = self._cut(decode)
            finish_reason = "repetition"
        written = [
            VersionSpan(s.start + self._num_prior, s.stop + self._num_prior, s.policy_version) for s in version_spans
        ]
        return Completion(
            text=text,
            token_ids=np.asarray(self._token_ids[:num_kept], dtype=np.int32),
            rollout_logprobs=np.asarray(self._logprobs[:num_kept], dtype=np.float32),
            finish_reason=finish_reason,
            version_spans=join_spans([*self._prior_spans, *written], num_kept),
        )

    def _cut(self, decode: Decode) -> tuple[int, str]:
        """Return the fewest tokens that hold the loop, of whichever kind comes first, and their text."""
        tokens = self._token_ids
        num_kept = len(tokens) if self._num_looping_tokens is None else self._num_looping_tokens
        if self._loop_end is not None:
            end = self._loop_end
            num_kept = bisect_left(range(num_kept), end, key=lambda k: len(decode(tokens[:k])))
        text = decode(tokens[:num_kept])
        while text.endswith("\ufffd") and num_kept < len(tokens):  # a character of several tokens, not complete yet
            num_kept += 1
            text = decode(tokens[:num_kept])
        return num_kept, text


def join_spans(spans: Sequence[VersionSpan], num_tokens: int) -> tuple[VersionSpan, ...]:
    """Return the spans of the first tokens, neighbours of one version as one; an empty one where there are no tokens.

    Example: [0, 3) of version 4, [3, 5) of 4 and [5, 9) of 5 become [0, 5) of 4 and [5, 7) of 5 for 7 tokens.
    """
    joined: list[VersionSpan] = []
    for span in spans:
        stop = min(span.stop, num_tokens)
        if span.start >= stop:
            continue
        if joined and joined[-1].policy_version == span.policy_version:
            joined[-1] = VersionSpan(joined[-1].start, stop, span.policy_version)
        else:
            joined.append(VersionSpan(span.start, stop, span.policy_version))
    return tuple(joined) or (VersionSpan(0, 0, spans[-1].policy_version),)


def resumable(prior: Completion, stop: str, decode: Decode) -> Completion:
    """Return what an engine can go on from: without last tokens that may begin the stop string or a character.

    An engine looks for the stop string in what it writes itself, so one that has begun must be written again. The
    tokens that are taken back are drawn anew from the same distribution, given what stays.
    """
    tokens = prior.token_ids.tolist()
    num_kept, text = len(tokens), decode(tokens)
    while num_kept and (text.endswith("\ufffd") or _begins(stop, text)):
        num_kept -= 1
        text = decode(tokens[:num_kept])
    if num_kept == len(tokens):
        return prior
    return Completion(
        text=text,
        token_ids=prior.token_ids[:num_kept],
        rollout_logprobs=prior.rollout_logprobs[:num_kept],
        finish_reason=prior.finish_reason,
        version_spans=join_spans(prior.version_spans, num_kept),
    )


def _begins(stop: str, text: str) -> bool:
    return any(text.endswith(stop[:n]) for n in range(1, len(stop)))
