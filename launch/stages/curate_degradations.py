"""`stage=curate recipe=degradations`: good texts become preference pairs.

prompts ─▶ the model's texts ─┐
                              ├─▶ sieve ─▶ good texts ─▶ spoiled in several ways ─▶ pairs, split by prompt
the user's texts ─────────────┘
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from launch.curate_store import PAIR_FILES, CurateStore
from launch.curate_writer import PolicyWriter
from launch.curator import Curator, Source
from launch.hub import with_local_models
from launch.lease import Lease
from launch.report import write_report
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import ClosableTracker, JsonlTracker, MultiTracker
from launch.wandb_tracker import WandbTracker
from lwz_ray.config import Config
from lwz_ray.data import load_prompts
from lwz_ray.degrading import MODEL_KINDS
from lwz_ray.encoding import PromptEncoder
from lwz_ray.failures import FailureLog, budgets_of
from lwz_ray.good_texts import load_texts, split_prompts

EXAMPLES_PER_KIND = 3


def needs_model(config: Config) -> bool:
    """Say whether the policy model has anything to write."""
    return config.curate.texts_path is None or not MODEL_KINDS.isdisjoint(config.curate.kinds)


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    tokenizer = encoder = None
    if needs_model(config):
        config = with_local_models(config)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        encoder = PromptEncoder(tokenizer, config.template)
    sources, rows = read_sources(config, encoder)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(CurateStage(config, lease, folder, sources, rows, encoder, tokenizer).run())


def read_sources(config: Config, encoder: PromptEncoder | None) -> tuple[list[Source], dict[str, int]]:
    """Return the first `curate.num_prompts` prompts, with the user's texts where there are some, and counts of rows."""
    sources: list[Source] = []
    if config.curate.texts_path is not None:
        given, rows = load_texts(config)
        sources.extend(given)
    else:
        # Without an encoder (before anything is loaded) no prompt is taken for too long.
        found = load_prompts(config.data, "abstain", encoder.num_tokens if encoder else lambda _: 0)
        sources.extend((prompt, None) for prompt in found.prompts)
        rows = found.counts
    return sources[: config.curate.num_prompts], rows


class CurateStage:
    """One attempt of a run."""

    def __init__(
        self,
        config: Config,
        lease: Lease,
        folder: RunFolder,
        sources: Sequence[Source],
        rows: dict[str, int],
        encoder: PromptEncoder | None,
        tokenizer: Any,
    ) -> None:
        """rows: counts of the source's rows; encoder, tokenizer: the policy model's, None where it is not needed."""
        self.config, self.folder, self.sources, self.rows = config, folder, sources, rows
        self.encoder, self.tokenizer = encoder, tokenizer
        self._started = time.monotonic()
        self.failures = FailureLog(budgets_of(config.failures), folder.warn)
        self._life = Lifecycle(config, lease)
        self._tracker: MultiTracker | None = None
        self._curator: Curator | None = None
        self._writer: PolicyWriter | None = None
        self._pairs: list[dict[str, Any]] = []

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        self._life.say(f"run folder: {self.folder.path}")
        self._life.say(f"{len(self.sources)} prompts of {self.rows['read']} rows")
        if not needs_model(self.config):
            await self._curate()
            return
        self._life.connect()
        self._life.say(f"starting engines (Ray's logs: {self._life.logs})")
        # No weights are published in this stage.
        rooms = Rooms(self.config, 0, self.folder.warn, self.failures)
        try:
            await rooms.start()
            assert self.encoder is not None
            self._writer = PolicyWriter(self.config, rooms.rollouts, self.encoder, self.tokenizer)
            await self.failures.guard(self._curate())
        finally:
            await rooms.close()

    async def _curate(self) -> None:
        config = self.config
        store = CurateStore(self.folder.path, config)
        splits = split_prompts([p.prompt_id for p, _ in self.sources], config.curate.held_out_share, config.seed)
        if self.folder.attempt > 1:
            self.folder.mark_superseded(len(store.read_texts()) + len(store.read_degraded()) or None)
        trackers: list[ClosableTracker] = [JsonlTracker(self.folder)]
        if config.tracking.wandb:
            trackers.append(WandbTracker(config, self.folder))
        self._tracker = MultiTracker(trackers)
        self._curator = Curator(config, store, self.sources, splits, self._writer, self._report)
        self._pairs = await self._curator.run()
        self.folder.append_lines(self._examples(self._curator.steps))
        self._life.finished = True

    def _report(self, metrics: dict[str, Any], words: str) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)
        if self.config.tracking.progress:
            self._life.say(words)

    def _examples(self, step: int) -> list[dict[str, Any]]:
        """Return the first pairs of each kind, by order and never by look."""
        found = []
        for kind in self.config.curate.kinds:
            rows = [row for row in self._pairs if row["kind"] == kind]
            # `split` of a sample line says what the line is; which side the pair is on has a name of its own.
            found += [{**row, "side": row["split"], "split": "pairs", "step": step} for row in rows[:EXAMPLES_PER_KIND]]
        return found

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        measured = self._curator.summary(self._pairs) if self._curator else {}
        summary = RunSummary(
            stage="curate",
            status=status,
            steps=self._curator.steps if self._curator else 0,
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=self._writer.num_tokens if self._writer else 0,
            tokens_trained=0,
            active_rewards=(),
            error=error,
            failures=self.failures.counts,
            measured={"curate": {"rows": self.rows, **measured}},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        if self._pairs:
            for split, name in PAIR_FILES.items():
                self._life.say(f"{measured['pairs'][split]} pairs: {self.folder.path / name}")
        self._life.say(f"status: {status}\nreport: {report}")
