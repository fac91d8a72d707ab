"""The work of `stage=curate`: collect good texts, then spoil them; whatever is done once is kept."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from launch.curate_store import CurateStore
from launch.curate_writer import PolicyWriter
from lwz_ray.concurrency import together
from lwz_ray.config import Config
from lwz_ray.degrading import Degraded, degrade, pair_row
from lwz_ray.good_texts import REASONS, GoodText, Sieve, Split, written_text
from lwz_ray.pair_statistics import length_statistics
from lwz_ray.records import Prompt
from rewards.repetition import repetition

PROGRESS_EVERY = 16
"""Prompts, and then texts, between two lines of progress."""

Report = Callable[[dict[str, Any], str], None]
"""Takes one line of metrics and the same in words."""
Source = tuple[Prompt, list[str] | None]
"""A prompt with the user's texts to it, or None where the model is to write them."""


class Curator:
    """Makes the pairs of `sources`, many prompts at a time."""

    def __init__(
        self,
        config: Config,
        store: CurateStore,
        sources: Sequence[Source],
        splits: Mapping[str, Split],
        writer: PolicyWriter | None,
        report: Report,
    ) -> None:
        """splits: the side of each prompt; writer: None where the model has nothing to do."""
        self._config, self._store, self._sources, self._splits = config, store, sources, splits
        self._writer, self._report = writer, report
        curate, ngram = config.curate, config.rewards.format.repetition_ngram
        self._sieve = Sieve(curate.min_sentences, curate.max_repetition, lambda text: repetition(text, ngram))
        self._left_out: Counter[str] = Counter()
        self._good: dict[str, list[GoodText]] = {}
        self._degraded: dict[tuple[str, int], Degraded] = {}
        self._began = time.monotonic()

    @property
    def steps(self) -> int:
        """Prompts and texts that are done."""
        return len(self._good) + len(self._degraded)

    async def run(self) -> list[dict[str, Any]]:
        """Return the rows of the preference set in the order of the sources, and leave them in the store."""
        for prompt_id, (texts, left_out) in self._store.read_texts().items():
            self._take(prompt_id, texts, left_out)
        missing = [source for source in self._sources if source[0].prompt_id not in self._good]
        await self._at_once([self._collect(prompt, texts) for prompt, texts in missing])
        texts = [t for prompt, _ in self._sources for t in self._good[prompt.prompt_id]]
        self._degraded = self._store.read_degraded()
        await self._at_once([self._spoil(t, texts) for t in texts if (t.prompt_id, t.sample) not in self._degraded])
        rows = [
            pair_row(text, kind, rejected, self._splits[text.prompt_id])
            for text in texts
            for kind, rejected in self._degraded[text.prompt_id, text.sample].rejected.items()
        ]
        self._store.publish(rows)
        return rows

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the `curate` part of `summary.json`; rows: what `run` returned, or none where it did not end."""
        kinds = self._config.curate.kinds
        missing: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        ways: Counter[str] = Counter(model=0, rules=0)
        for done in self._degraded.values():
            ways.update(done.ways)
            for kind, reason in done.missing.items():
                missing[kind][reason] += 1
        sides = Counter(self._splits[prompt_id] for prompt_id in self._good)
        by_split = {k: Counter(r["kind"] for r in rows if r["split"] == k) for k in ("train", "heldout")}
        return {
            "prompts": {"done": len(self._good), "train": sides["train"], "heldout": sides["heldout"]},
            "texts": {"seen": self._num_good + self._left_out.total(), "good": self._num_good},
            "left_out": {reason: self._left_out[reason] for reason in REASONS},
            "pairs": {"train": by_split["train"].total(), "heldout": by_split["heldout"].total()},
            "kinds": {
                kind: {
                    "train": by_split["train"][kind],
                    "heldout": by_split["heldout"][kind],
                    "missing": dict(missing[kind]),
                }
                for kind in kinds
            },
            "paraphrased_by": dict(ways),
            "length": length_statistics(rows, kinds, self._config.preference.match_words),
        }

    async def _collect(self, prompt: Prompt, given: list[str] | None) -> None:
        """Sift the texts to one prompt, after the model has written them where there are none."""
        texts: list[str | None]
        if given is not None:
            texts = list(given)
        else:
            assert self._writer is not None
            template = self._config.template
            written = await self._writer.write(prompt, seed_of(self._config.seed, prompt.prompt_id))
            texts = [written_text(c, template.arm, template.prefill, template.stop) for c in written]
        good, left_out = self._sieve.sift(prompt, texts)
        self._store.add_texts(prompt.prompt_id, good, left_out)
        self._take(prompt.prompt_id, good, left_out)
        self._progress("prompts", len(self._good), len(self._sources))

    def _take(self, prompt_id: str, texts: list[GoodText], left_out: Mapping[str, int]) -> None:
        self._good[prompt_id] = texts
        self._left_out.update(left_out)

    async def _spoil(self, text: GoodText, texts: Sequence[GoodText]) -> None:
        curate = self._config.curate
        side = self._splits[text.prompt_id]
        others = [t for t in texts if self._splits[t.prompt_id] == side]
        done = await degrade(text, curate.kinds, others, self._writer, self._config.seed, curate.hot_temperature)
        self._store.add_degraded(text, done)
        self._degraded[text.prompt_id, text.sample] = done
        self._progress("texts spoiled", len(self._degraded), len(texts))

    @property
    def _num_good(self) -> int:
        return sum(len(texts) for texts in self._good.values())

    def _progress(self, what: str, done: int, total: int) -> None:
        if done % PROGRESS_EVERY and done != total:
            return
        seconds = time.monotonic() - self._began
        tokens = self._writer.num_tokens if self._writer is not None else 0
        pairs = sum(len(d.rejected) for d in self._degraded.values())
        metrics = {
            "step": self.steps,
            "policy_version": 0,
            "curate/prompts": len(self._good),
            "curate/texts": self._num_good + self._left_out.total(),
            "curate/good": self._num_good,
            "curate/degraded": len(self._degraded),
            "curate/pairs": pairs,
            "curate/tokens": tokens,
            "curate/tokens_per_s": tokens / seconds,
        }
        words = f"{what} {done}/{total} · {self._num_good} good texts · {pairs} pairs · {tokens / seconds:.0f} tokens/s"
        self._report(metrics, words)

    async def _at_once(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run all, as many at a time as the engines decode together and a few more; the first error ends the rest."""
        room = self._config.actors
        gate = asyncio.Semaphore(
            max(4, 2 * room.replicas * room.max_num_seqs // self._config.curate.samples_per_prompt)
        )

        async def gated(work: Coroutine[Any, Any, None]) -> None:
            async with gate:
                await work

        try:
            await together([gated(work) for work in works])
        finally:
            for work in works:
                work.close()  # one that never came to its turn


def seed_of(seed: int, prompt_id: str) -> int:
    """Return the sampling seed of one prompt's texts; it depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:4], "big") // 2
