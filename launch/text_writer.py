"""Texts to requests from the rollout pool, each kept as soon as it ends."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from actors.pool import RolloutPool
from launch.text_store import TextStore
from lwz_ray.concurrency import together
from lwz_ray.config import Config
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError
from lwz_ray.records import Completion, Prompt, RolloutRequest
from lwz_ray.texts import WrittenText, written_text

PROGRESS_EVERY_S = 10.0
"""Between two lines of progress."""

Report = Callable[[dict[str, Any], str], None]
"""Takes one line of metrics and the same in words."""


class TextWriter:
    """Writes what the store does not hold yet; the same request, settings and weights give the same text."""

    def __init__(
        self,
        config: Config,
        pool: RolloutPool,
        encoder: PromptEncoder,
        store: TextStore,
        report: Report = lambda metrics, words: None,
        on_text: Callable[[WrittenText], None] = lambda text: None,
    ) -> None:
        """report: told of the progress; on_text: told of every new text, after the store has it."""
        self._config, self._pool, self._encoder, self._store = config, pool, encoder, store
        self._report, self._on_text = report, on_text
        self.num_tokens = 0
        """Completion tokens written by this writer."""
        self.num_new = 0
        """Texts written by this writer."""
        self._done: dict[tuple[str, int], WrittenText] = {}
        self._total = 0
        self._began = time.monotonic()

    @property
    def num_done(self) -> int:
        """Texts of the present `run` that are there, those found in the store included."""
        return len(self._done)

    async def run(self, prompts: Sequence[Prompt], samples: int) -> list[WrittenText]:
        """Return the texts, `samples` to a prompt, in the order of the prompts and then of `sample_index`.

        Prompt ids must be unique, and there must be a prompt. Raises UserError before anything is written where one
        leaves no room for a text; else what the pool raises, with everything that has ended by then in the store.
        """
        wanted = [(prompt, index) for prompt in prompts for index in range(samples)]
        missing = self.begin(wanted)
        # What takes longest starts first, so that the last engine does not write alone at the end.
        if self._config.actors.order == "longest_first":
            missing.sort(key=lambda one: -_requested_words(one[0]))
        requests = [self.request(prompt, index) for prompt, index in missing]
        works = [self._write(*one, request) for one, request in zip(missing, requests, strict=True)]
        ticking = asyncio.create_task(self._tick())
        try:
            await self._at_once(works)
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking  # what it failed with is a failure of the run
        if not missing:
            self._tell()
        return [self._done[prompt.prompt_id, index] for prompt, index in wanted]

    def begin(self, wanted: Sequence[tuple[Prompt, int]]) -> list[tuple[Prompt, int]]:
        """Count from here; return what of (prompt, sample index) is not in the store yet."""
        self._began = time.monotonic()
        self._done, self._total = {}, len(wanted)
        for prompt, index in wanted:
            text = self._store.get(prompt, index)
            if text is not None:
                self._done[prompt.prompt_id, index] = text
        return [one for one in wanted if (one[0].prompt_id, one[1]) not in self._done]

    def request(self, prompt: Prompt, sample_index: int) -> RolloutRequest:
        """Return what is asked of an engine for one text; a context that is nearly full limits it.

        Raises UserError where the prompt fills the context.
        """
        ids = self._encoder.encode(prompt).tolist()
        room = self._config.model.max_length_tokens - len(ids)
        if room < 1:
            raise UserError(
                f"request {prompt.prompt_id!r} has {len(ids)} tokens with its template, model.max_length_tokens="
                f"{self._config.model.max_length_tokens} leaves no room for a text: raise it, or leave the request out"
            )
        limit = min(self._config.sampling.max_tokens, room)
        seed = seed_of(self._config.seed, prompt.prompt_id, sample_index)
        return RolloutRequest(ids, 1, seed, max_tokens=limit, requested_words=_requested_words(prompt))

    def keep(self, prompt: Prompt, sample_index: int, completion: Completion) -> WrittenText:
        """Take apart what an engine wrote and keep it."""
        template = self._config.template
        text = written_text(prompt, sample_index, completion, template, self._encoder.num_plain_tokens)
        self._store.add(text)
        self.num_tokens += text.num_tokens
        self.num_new += 1
        self._done[prompt.prompt_id, sample_index] = text
        self._on_text(text)
        if self.num_done == self._total:
            self._tell()
        return text

    async def _write(self, prompt: Prompt, sample_index: int, request: RolloutRequest) -> None:
        # One request a text: what has ended is kept while others to the same prompt are still being written.
        async with contextlib.aclosing(self._pool.stream(request)) as stream:
            async for _, completion in stream:
                self.keep(prompt, sample_index, completion)

    async def _at_once(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run all, in order, as many at a time as the engines decode together, and a few that wait.

        Not more: what waits for an engine counts against `actors.request_timeout_s`.
        """
        room = self._config.actors
        num = room.replicas * room.max_num_seqs
        gate = asyncio.Semaphore(num + max(4, num // 4))

        async def gated(work: Coroutine[Any, Any, None]) -> None:
            async with gate:
                await work

        try:
            await together([gated(work) for work in works])
        finally:
            for work in works:
                work.close()  # one that never came to its turn

    async def _tick(self) -> None:
        """Tell of the progress from time to time, also while long texts leave nothing new to tell."""
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            self._tell()

    def _tell(self) -> None:
        texts = list(self._done.values())
        speed = self.num_tokens / max(time.monotonic() - self._began, 1e-6)
        metrics: dict[str, Any] = {
            "step": self.num_done,
            "policy_version": 0,
            "generate/texts": self.num_done,
            "generate/tokens": self.num_tokens,
            "generate/tokens_per_s": speed,
            **self._pool.metrics(),
        }
        words = [f"texts {self.num_done}/{self._total}"]
        if self.num_done < self._total:
            words.append(f"{metrics['dispatch/open']:.0f} being written")
        if texts:
            means = _means(texts)
            metrics |= {f"generate/{name}": value for name, value in means.items()}
            words.append(f"{means['mean_words']:.0f} words")
            words += [f"{means[name]:.0%} {name.replace('_', ' ')}" for name in ("well_formed", "truncated", "looped")]
        self._report(metrics, " · ".join([*words, f"{speed:.0f} tokens/s"]))


def _means(texts: Sequence[WrittenText]) -> dict[str, float]:
    """Return what `generate/…` says of the texts that are there."""
    return {
        "mean_words": float(np.mean([t.num_words for t in texts])),
        "mean_think_tokens": float(np.mean([t.num_think_tokens for t in texts])),
        "well_formed": float(np.mean([t.well_formed for t in texts])),
        "truncated": float(np.mean([t.finish_reason == "length" for t in texts])),
        "looped": float(np.mean([t.finish_reason == "repetition" for t in texts])),
    }


def seed_of(seed: int, prompt_id: str, sample_index: int) -> int:
    """Return the sampling seed of one text; it depends on nothing else."""
    found = hashlib.sha256(f"{seed}/{prompt_id}/{sample_index}".encode()).digest()
    return int.from_bytes(found[:4], "big") // 2


def _requested_words(prompt: Prompt) -> int:
    return prompt.length_range[1] if prompt.length_range else 0
