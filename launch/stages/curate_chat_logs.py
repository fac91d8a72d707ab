"""`stage=curate recipe=chat_logs`: conversations become writing requests with word ranges, for stage=rl.

chat logs ─▶ sieve ─▶ candidates ─▶ needs a long text? ─▶ length stated? ─▶ word range ─▶ requests.jsonl
             counts by reason       └────────── asked: an engine of ours, or an endpoint ──────────┘
"""

import asyncio
import time
from typing import Any

from launch.chat_curate_store import CONTAMINATION, REQUESTS, ChatCurateStore
from launch.chat_curator import ChatCurator
from launch.chat_open import open_chat, probe
from launch.hub import with_local_models
from launch.lease import Lease
from launch.report import write_report
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import ClosableTracker, JsonlTracker, MultiTracker
from launch.wandb_tracker import WandbTracker
from lwz_ray.config import Config


def run(config: Config) -> int:
    """Run the recipe; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    if config.curate.chat_logs.asked == "engine":
        config = with_local_models(config)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(ChatLogsStage(config, lease, folder).run())


class ChatLogsStage:
    """One attempt of a run."""

    def __init__(self, config: Config, lease: Lease, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self._started = time.monotonic()
        self._life = Lifecycle(config, lease)
        self._tracker: MultiTracker | None = None
        self._curator: ChatCurator | None = None

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        config = self.config
        self._life.say(f"run folder: {self.folder.path}")
        store = ChatCurateStore(self.folder.path, config)
        if self.folder.attempt > 1:
            self.folder.mark_superseded(len(store.read_decided()) or None)
        trackers: list[ClosableTracker] = [JsonlTracker(self.folder)]
        if config.tracking.wandb:
            trackers.append(WandbTracker(config, self.folder))
        self._tracker = MultiTracker(trackers)
        curator = self._curator = ChatCurator(config, store, self._report, self._life.say)
        await curator.sieve()
        if curator.num_missing:
            await self._ask(curator)
        curator.publish()
        self.folder.append_lines([{**line, "step": curator.num_decided} for line in curator.examples()])
        if not curator.num_kept:
            self.folder.warn("curate", f"no request was kept: {curator.lost}; see samples.jsonl, or ask another model")
        self._life.finished = True

    async def _ask(self, curator: ChatCurator) -> None:
        config, asked = self.config, self.config.curate.chat_logs.asked
        self._life.say(f"asking {self._who()}: {await curator.estimate()}")
        at_once = config.judge.max_concurrency
        if asked == "engine":
            at_once = max(4, 2 * config.actors.replicas * config.actors.max_num_seqs)
            self._life.connect()
            self._life.say(f"starting engines (Ray's logs: {self._life.logs})")
        async with open_chat(config, "curate", self.folder.path) as chat:
            if asked == "endpoint":
                await probe(chat, config.judge.structured_output)
            await curator.ask(chat, at_once)

    def _who(self) -> str:
        if self.config.curate.chat_logs.asked == "engine":
            return self.config.model.path
        return f"{self.config.judge.model} at {self.config.judge.base_url}"

    def _report(self, metrics: dict[str, Any], words: str) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)
        if self.config.tracking.progress:
            self._life.say(words)

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        curator = self._curator
        measured: dict[str, Any] = {"recipe": "chat_logs"} if curator is None else curator.summary()
        summary = RunSummary(
            stage="curate",
            status=status,
            steps=0 if curator is None else curator.num_decided,
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=0 if curator is None else curator.num_tokens,
            tokens_trained=0,
            active_rewards=(),
            error=error,
            measured={"curate": measured},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        if status == "completed" and curator is not None:
            self._life.say(f"{curator.num_kept} requests: {self.folder.path / REQUESTS}")
            if unanswered := sum(measured["without_reply"].values()):
                self._life.say(
                    f"{unanswered} requests were left without a reply: run.resume=auto asks about them again"
                )
            if self.config.curate.chat_logs.benchmarks:
                self._life.say(f"overlap with benchmarks: {self.folder.path / CONTAMINATION}")
        self._life.say(f"status: {status}\nreport: {report}")
