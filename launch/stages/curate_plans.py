"""`stage=curate recipe=distill_plans`: the plans of a run of stage=rl become documents for stage=pretrain."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.files import iter_json_lines, read_json, read_yaml, replacing, to_json
from launch.lease import Lease
from launch.report import write_report
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import ClosableTracker, JsonlTracker, MultiTracker
from launch.wandb_tracker import WandbTracker
from lwz_ray.config import Config
from lwz_ray.corpus_plans import LEFT_OUT, Plan, distill
from lwz_ray.errors import UserError

PLANS_FILE = "plans.jsonl"
EXAMPLES = 3
SAYS_EVERY = 1000
"""Samples between two words about how far it is."""


def run(config: Config) -> int:
    """Run the recipe; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    source = check(config)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(PlansStage(config, lease, folder, source).run())


def check(config: Config) -> Path:
    """Return the run folder that is read; raises UserError where it is none, or one whose template asks for no plan."""
    name = config.curate.plans.run
    if name is None:
        raise UserError("recipe=distill_plans needs a run: curate.plans.run=FOLDER, a run folder of stage=rl")
    folder = Path(name)
    for file in ("config.yaml", "samples.jsonl"):
        if not (folder / file).is_file():
            raise UserError(f"curate.plans.run={name}: has no {file}; name the run folder of a stage=rl")
    stage = read_yaml(folder / "config.yaml").get("stage")
    if stage != "rl":
        raise UserError(f"curate.plans.run={name}: a run of stage={stage}; name the run folder of a stage=rl")
    arm = _template(folder)["arm"]
    if arm != "think":
        raise UserError(f"curate.plans.run={name}: its template.arm is {arm}, so it holds no plans; use template=think")
    return folder


class PlansStage:
    """One attempt of a run; the work is short and is done anew by each."""

    def __init__(self, config: Config, lease: Lease, folder: RunFolder, source: Path) -> None:
        """source: the run folder that is read."""
        self.config, self.folder, self.source = config, folder, source
        self._started = time.monotonic()
        self._life = Lifecycle(config, lease)
        self._tracker: MultiTracker | None = None
        self._measured: dict[str, Any] = {}

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        self._life.say(f"run folder: {self.folder.path}\nreading {self.source / 'samples.jsonl'}")
        if self.folder.attempt > 1:
            self.folder.mark_superseded(None)
        trackers: list[ClosableTracker] = [JsonlTracker(self.folder)]
        if self.config.tracking.wandb:
            trackers.append(WandbTracker(self.config, self.folder))
        self._tracker = MultiTracker(trackers)
        prefill = _template(self.source)["prefill"]
        plans, counts = await asyncio.to_thread(distill, self._lines(), self.config.curate.plans, prefill)
        self._measured = self._summary(plans, counts)
        if not plans:
            lost = ", ".join(f"{counts[name]} {name}" for name in LEFT_OUT if counts[name])
            raise UserError(
                f"curate.plans.run={self.source}: none of its {counts['read']} samples gives a plan ({lost}); lower "
                "curate.plans.min_reward or min_plan_words, or name a run whose policy plans"
            )
        self._publish(plans, counts)
        self._life.finished = True

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the source's samples, one in memory at a time; a stop ends them."""
        # A run that goes on may be writing its last line: what is whole is read.
        for number, line in enumerate(iter_json_lines(self.source / "samples.jsonl", []), start=1):
            if self._life.stop.is_set():
                return
            if number % SAYS_EVERY == 0 and self.config.tracking.progress:
                self._life.say(f"{number} samples read")
            yield line

    def _publish(self, plans: list[Plan], counts: dict[str, int]) -> None:
        assert self._tracker is not None
        with replacing(self.folder.path / PLANS_FILE) as file:
            file.writelines(to_json(plan.as_dict()) + "\n" for plan in plans)
        words = self._measured["plan_words"]
        metrics = {"curate/samples": counts["read"], "curate/plans": counts["kept"], "curate/plan_words": words["mean"]}
        self._tracker.log_step({"step": 1, "policy_version": 0, **metrics})
        self.folder.append_lines(
            [{**p.as_dict(), "step": 1, "split": "plans", "from_step": p.step} for p in plans[:EXAMPLES]]
        )

    def _summary(self, plans: list[Plan], counts: dict[str, int]) -> dict[str, Any]:
        words = [p.num_words for p in plans]
        path = self.source / "summary.json"
        return {
            "recipe": "distill_plans",
            "run": str(self.source),
            "run_status": read_json(path)["status"] if path.is_file() else None,
            "samples": counts,
            "plans": {language: sum(p.language == language for p in plans) for language in ("en", "zh")},
            "plan_words": {"mean": sum(words) / len(words), "least": min(words), "most": max(words)} if words else None,
        }

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        summary = RunSummary(
            stage="curate",
            status=status,
            steps=1 if status == "completed" else 0,
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=0,
            tokens_trained=0,
            active_rewards=(),
            error=error,
            measured={"curate": self._measured},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        if status == "completed":
            kept, read = self._measured["samples"]["kept"], self._measured["samples"]["read"]
            self._life.say(f"{kept} plans of {read} samples: {self.folder.path / PLANS_FILE}")
        self._life.say(f"status: {status}\nreport: {report}")


def _template(folder: Path) -> dict[str, Any]:
    template = read_yaml(folder / "config.yaml").get("template")
    if not isinstance(template, dict) or "arm" not in template:
        raise UserError(
            f"curate.plans.run={folder}: its config.yaml names no template; name the run folder of a stage=rl"
        )
    return template
