"""`stage=rl`: evaluate, train, evaluate again, and leave a run folder that explains itself."""

import asyncio
import time
from pathlib import Path

from transformers import AutoTokenizer

from launch.checkpoints import CheckpointStore, model_identity
from launch.console import ConsoleSamples, ConsoleTable
from launch.control_actor import Control
from launch.hub import with_local_models
from launch.lease import Lease
from launch.recovery import Recovery
from launch.report import write_report
from launch.report_data import first_pairs
from launch.rl_run import RlRun
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from lwz_ray.config import Config
from lwz_ray.data import PromptSet, load_eval_prompts, load_prompts
from lwz_ray.encoding import PromptEncoder
from lwz_ray.failures import FailureLog, budgets_of
from rewards.judge import check_references

CONSOLE_SAMPLES = 3


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    config = with_local_models(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    encoder = PromptEncoder(tokenizer, config.template)
    prompts = load_prompts(config.data, config.rewards.length.on_missing_range, encoder.num_tokens)
    held_out = load_eval_prompts(config, encoder.num_tokens)
    if config.judge.base_url is not None:
        check_references(config.judge, [*prompts.prompts, *held_out.prompts])
    with leased(config) as lease:
        store = CheckpointStore(
            Path(config.run.dir) / config.run.name / "checkpoints", model_identity(config.model.path), config.run,
            config.learners.step_timeout_s, lease.check,
        )  # fmt: skip
        newest = store.newest() if config.run.resume == "auto" else None
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(RlStage(config, lease, folder, encoder, prompts, held_out, store, newest).run())


class RlStage:
    """One job of a run: its rooms, its attempts, and its summary."""

    def __init__(
        self,
        config: Config,
        lease: Lease,
        folder: RunFolder,
        encoder: PromptEncoder,
        prompts: PromptSet,
        held_out: PromptSet,
        store: CheckpointStore,
        newest: Path | None,
    ) -> None:
        """newest: the checkpoint to go on from."""
        self.config, self.folder, self.encoder = config, folder, encoder
        self.prompts, self.held_out = prompts, held_out
        self.store, self.newest = store, newest
        self.failures = FailureLog(budgets_of(config.failures), folder.warn)
        self._started = time.monotonic()
        self._life = Lifecycle(config, lease)
        self._run: RlRun | None = None

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        say = self._life.say
        say(f"run folder: {self.folder.path}")
        if self.prompts.counts["kept"] != self.prompts.counts["read"]:
            say(f"prompts: {self.prompts.counts}")
        self._life.connect()
        say(f"starting engines and learners (Ray's logs: {self._life.logs})")
        rooms = Rooms(self.config, _model_bytes(self.config.model.path), self.folder.warn, self.failures)
        control: Control | None = None
        try:
            await rooms.start()
            control = rooms.control(self.folder.path, self.folder.check)
            await control.start()
            await self._train(rooms)
        finally:
            if unfinished := await self.store.end():
                self.folder.warn("checkpoint", unfinished)
            if control is not None:
                await control.stop()
            await rooms.close()

    async def _train(self, rooms: Rooms) -> None:
        assert rooms.scorers is not None and rooms.learning is not None
        await rooms.scorers.check()
        self._run = attempts = RlRun(
            self.config, self._life, self.folder, self.store, self.failures, rooms, rooms.scorers, self.encoder,
            self.prompts, self.held_out,
        )  # fmt: skip
        recovery = Recovery(
            rooms.learning, rooms.restart_learners, self.folder, self.store, self.failures, self._life.say
        )
        await recovery.run(attempts.attempt, self.newest, self._life.stop)

    def _end(self, status: Status, error: str | None) -> None:
        run = self._run
        if run is not None and run.tracker is not None:
            run.tracker.close()
        summary = self._summary(run, status, error)
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        ConsoleSamples().show(first_pairs(self.folder.samples, CONSOLE_SAMPLES))
        ConsoleTable().show(summary.as_dict(), self.folder.path, report)

    def _summary(self, run: RlRun | None, status: Status, error: str | None) -> RunSummary:
        loop = run.loop if run else None
        progress = loop.progress if loop else None
        account = loop.ledger.as_dict() if loop else {}
        measured = {}
        if run is not None and run.tracker is not None and run.tracker.watch is not None:
            measured["watch"] = run.tracker.watch.counts
        if run is not None and run.probed is not None:
            measured["probe"] = run.probed
        return RunSummary(
            stage="rl",
            status=status,
            steps=progress.step if progress else 0,
            skipped_steps=progress.skipped_steps if progress else 0,
            policy_version=progress.policy_version if progress else 0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(
                admitted=account.get("admitted", 0),
                trained=account.get("trained", 0),
                dropped=account.get("dropped", {}),
                in_flight=account.get("in_flight", 0),
            ),
            tokens_generated=progress.tokens_generated if progress else 0,
            tokens_trained=progress.tokens_trained if progress else 0,
            active_rewards=self.config.rewards.active,
            eval=run.evaluation if run else None,
            error=error,
            failures=self.failures.counts,
            restarts=self.folder.restarts,
            lost_steps=self.folder.lost_steps,
            measured=measured,
            extra={"prompts": self.prompts.counts, "held_out": self.held_out.counts},
        )


def _model_bytes(path: str) -> int:
    """Return the size of a model folder's weights, with a margin for another dtype on the wire."""
    return int(1.1 * sum(p.stat().st_size for p in Path(path).glob("*.safetensors")))
