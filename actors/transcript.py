"""What one request has written so far, put together from the pieces that an engine streams."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from actors.repetition_stop import SentenceWatch
from lwz_ray.records import Completion, FinishReason, VersionSpan

Decode = Callable[[Sequence[int]], str]
"""Text of the first tokens of a completion."""


class Transcript:
    """Tokens, logprobs and text of one sample, watched for loops."""

    def __init__(self, watch: SentenceWatch | None) -> None:
        self._watch = watch
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._pieces: list[str] = []
        self._loop_end: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens so far, those after a cut included."""
        return len(self._token_ids)

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], text: str) -> bool:
        """Take the next piece; return True once, when the text has begun to loop."""
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        self._pieces.append(text)
        if self._watch is None or self._loop_end is not None:
            return False
        self._loop_end = self._watch.add(text)
        return self._loop_end is not None

    def completion(
        self, finish_reason: FinishReason, version_spans: Sequence[VersionSpan], decode: Decode
    ) -> Completion:
        """Return the sample, cut where its loop was found.

        The cut depends on the text alone, not on how far the engine had gone on when it heard of it.
        """
        num_kept, text = len(self._token_ids), "".join(self._pieces)
        if self._loop_end is not None:
            num_kept, text = self._cut(self._loop_end, decode)
            finish_reason = "repetition"
        spans = [VersionSpan(s.start, min(s.stop, num_kept), s.policy_version) for s in version_spans]
        return Completion(
            text=text,
            token_ids=np.asarray(self._token_ids[:num_kept], dtype=np.int32),
            rollout_logprobs=np.asarray(self._logprobs[:num_kept], dtype=np.float32),
            finish_reason=finish_reason,
            version_spans=tuple(s for i, s in enumerate(spans) if i == 0 or s.start < num_kept),
        )

    def _cut(self, end: int, decode: Decode) -> tuple[int, str]:
        """Return the fewest tokens whose text reaches character `end`, and that text."""
        tokens = self._token_ids
        num_kept = bisect_left(range(len(tokens)), end, key=lambda k: len(decode(tokens[:k])))
        text = decode(tokens[:num_kept])
        while text.endswith("\ufffd") and num_kept < len(tokens):  # a character of several tokens, not complete yet
            num_kept += 1
            text = decode(tokens[:num_kept])
        return num_kept, text
