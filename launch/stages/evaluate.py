"""`stage=evaluate`: a model's texts to a benchmark's requests, measured, judged and scored.

requests ─▶ the model's texts ─┐                          ┌─▶ evaluation.json, by request
                               ├─▶ measures ─▶ judge ─▶ scores
texts that are there already ──┘             (cached)     └─▶ summary, report
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from launch.chat_open import chat_source, open_chat, probe
from launch.evaluate_cost import check_cost, estimate_judging
from launch.evaluate_file import EVALUATION_FILE, set_aside, write_evaluation
from launch.evaluate_judge import NO_JUDGE, judge_facts
from launch.evaluate_scores import JUDGED, NOT_MEASURED, Found, brief, score_texts, score_verdicts
from launch.evaluate_talk import Judging
from launch.evaluate_texts import TextSource, publish_texts, told_texts
from launch.hub import with_local_models
from launch.lease import Lease
from launch.report import write_report
from launch.report_evaluate import evaluate_lines
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.text_store import TextStore
from launch.text_writer import TextWriter
from launch.trackers import ClosableTracker, JsonlTracker, MultiTracker
from launch.wandb_tracker import WandbTracker
from lwz_ray.benchmarks.loading import load_benchmark
from lwz_ray.benchmarks.records import Benchmark
from lwz_ray.config import Config
from lwz_ray.encoding import PromptEncoder
from lwz_ray.texts import WrittenText


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    config = with_local_models(config)
    encoder = None
    if config.evaluate.texts_path is None:
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        encoder = PromptEncoder(tokenizer, config.template)
    benchmark = load_benchmark(config.benchmark)
    source = TextSource(config, benchmark, encoder)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(EvaluateStage(config, lease, folder, benchmark, source).run())


class EvaluateStage:
    """One attempt of a run."""

    def __init__(
        self, config: Config, lease: Lease, folder: RunFolder, benchmark: Benchmark, source: TextSource
    ) -> None:
        self.config, self.folder, self.benchmark, self.source = config, folder, benchmark, source
        self.judge = judge_facts(config)
        self._store = None if source.encoder is None else TextStore(folder.path, config)
        self._started = time.monotonic()
        self._life = Lifecycle(config, lease)
        self._tracker: MultiTracker | None = None
        self._writer: TextWriter | None = None
        self._texts: list[WrittenText] = []
        self._found: Found | None = None
        self._judging: Judging | None = None

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        say, config, benchmark = self._life.say, self.config, self.benchmark
        say(f"run folder: {self.folder.path}")
        set_aside(self.folder.path, self.folder.attempt)
        part = "" if benchmark.complete else f" of {benchmark.num_whole}: not the whole benchmark"
        say(f"{benchmark.name}: {len(benchmark.requests)} requests{part}")
        if self.source.left_out:
            say(f"left out, over data.max_prompt_tokens={config.data.max_prompt_tokens}: {len(self.source.left_out)}")
        if self.judge is not None:
            say(estimate_judging(config, benchmark, self.source.given or None).words)
            if chat_source(config, "judge") == "endpoint":
                # A judge that cannot be reached shows now, and not after hours of writing.
                async with open_chat(config, "judge", self.folder.path) as chat:
                    await probe(chat, config.judge.structured_output)
        await self._write()
        publish_texts(self.folder.path, self._texts)
        self._found = score_texts(config, benchmark, self._texts, "judging has not ended" if self.judge else NO_JUDGE)
        self._keep()
        if self.judge is not None:
            await self._ask()
            self._keep()
        too_small = self.judge is not None and self.judge.not_a_result is not None
        means = self._found.means(but=self._found.judged if too_small else ())
        self._log({f"evaluate/{name}": value for name, value in means.items()}, self._last_step + 1)
        self._life.finished = True

    async def _write(self) -> None:
        """Have every text, those of earlier attempts as they are."""
        store, source = self._store, self.source
        if store is None:
            self._texts = source.given
            self._open_trackers(self._texts)
            return
        samples = self.config.evaluate.samples_per_request
        wanted = [(prompt, index) for prompt in source.prompts for index in range(samples)]
        done = [text for one in wanted if (text := store.get(*one)) is not None]
        self._open_trackers(done)
        if len(done) == len(wanted):
            self._texts = done
            return
        there = f", {len(done)} are there already" if done else ""
        self._life.say(f"{len(wanted)} texts to write{there}")
        self._connect("engines")
        rooms = Rooms(self.config, 0)  # no weights are published in this stage
        try:
            await rooms.start()
            assert source.encoder is not None
            self._writer = TextWriter(self.config, rooms.rollouts, source.encoder, store, self._report, self._sample)
            self._texts = await self._writer.run(source.prompts, samples)
        finally:
            await rooms.close()

    async def _ask(self) -> None:
        """Judge every text; replies of earlier attempts are not asked for again."""
        assert self._found is not None
        if not self.source.given:
            estimate = estimate_judging(self.config, self.benchmark, self._texts)
            self._life.say(estimate.words)
            check_cost(self.config, estimate)
        if chat_source(self.config, "judge") == "engine":
            self._connect("the judge's engines")
        self._judging = Judging(self.config, self.benchmark, self._report, len(self._texts))
        async with open_chat(self.config, "judge", self.folder.path) as chat:
            judged = await self._judging.run(self._texts, chat)
        if judged.verdicts:
            score_verdicts(self.config, self.benchmark, self._found, judged.verdicts)
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in judged.failed.items())
        reason = f"the judge gave no verdict to {judged.num_questions} questions ({reasons})"
        self._found.scores |= {name: {NOT_MEASURED: reason} for name in JUDGED[self.benchmark.name]}

    def _connect(self, what: str) -> None:
        if not self._life.logs:
            self._life.connect()
        self._life.say(f"starting {what} (Ray's logs: {self._life.logs})")

    def _open_trackers(self, done: Sequence[WrittenText]) -> None:
        """Bring the run folder's lines in step with the texts that are there."""
        if self.folder.attempt > 1:
            # Texts that are given may be others by now; those of the store are the same by its key.
            self.folder.mark_superseded((len(done) or None) if self._store else None)
        told = told_texts(self.folder.samples)
        self.folder.append_lines(
            [self._line(text, len(done)) for text in done if (text.prompt_id, text.sample_index) not in told]
        )
        trackers: list[ClosableTracker] = [JsonlTracker(self.folder)]
        if self.config.tracking.wandb:
            trackers.append(WandbTracker(self.config, self.folder))
        self._tracker = MultiTracker(trackers)

    def _sample(self, text: WrittenText) -> None:
        assert self._writer is not None
        self.folder.append_lines([self._line(text, self._writer.num_done)])

    def _line(self, text: WrittenText, step: int) -> dict[str, Any]:
        """Return a line of `samples.jsonl`."""
        return {"step": step, "split": "texts", **text.as_dict()}

    def _report(self, metrics: dict[str, Any], words: str) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)
        if self.config.tracking.progress:
            self._life.say(words)

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        assert self._tracker is not None
        self._tracker.log_step({"step": step, "policy_version": 0, **metrics})

    @property
    def _last_step(self) -> int:
        """Texts and questions that are done."""
        return len(self._texts) + (self._judging.judged.num_done if self._judging else 0)

    def _keep(self) -> None:
        """Write what is found so far, so that a judge that fails takes nothing of it away."""
        assert self._found is not None
        self.folder.check()
        verdicts = self._judging.judged.verdicts if self._judging else []
        write_evaluation(
            self.folder.path, self.config, self.benchmark, self._found, self._facts(), self.judge, verdicts
        )

    def _facts(self) -> dict[str, Any]:
        """Return everything that was found."""
        benchmark, found = self.benchmark, self._found
        return {
            "benchmark": benchmark.name,
            "requests": {
                "in_file": benchmark.num_in_file,
                "whole": benchmark.num_whole,
                "asked": len(benchmark.requests),
                "left_out_too_long": self.source.left_out,
                "complete": benchmark.complete and not self.source.left_out,
            },
            "baselines": benchmark.baseline_digests,
            "texts": {
                "written": len(self._texts),
                "by": self.config.evaluate.texts_path or self.config.model.path,
                "unused_lines": self.source.unused,
            },
            "scores": found.scores if found else {},
            "measures": found.measures if found else {},
            "judge": self._judge_facts(),
        }

    def _brief(self) -> dict[str, Any]:
        """Return the `evaluate` part of `summary.json`: the groups are in evaluation.json."""
        facts = self._facts()
        return {**facts, "scores": brief(facts["scores"]), "measures": brief(facts["measures"])}

    def _judge_facts(self) -> dict[str, Any]:
        if self.judge is None:
            return {NOT_MEASURED: NO_JUDGE}
        facts = {
            "name": self.judge.name,
            "source": self.judge.source,
            "num_parameters": self.judge.num_parameters,
            "identity": self.judge.identity,
            "not_a_result": self.judge.not_a_result,
        }
        return {**facts, **(self._judging.summary() if self._judging else {})}

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        summary = RunSummary(
            stage="evaluate",
            status=status,
            steps=self._last_step,
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=self._writer.num_tokens if self._writer else 0,
            tokens_trained=0,
            active_rewards=(),
            error=error,
            measured={"evaluate": self._brief()},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        for line in self._told():
            self._life.say(line)
        self._life.say(f"status: {status}\nreport: {report}")

    def _told(self) -> list[str]:
        """Return the result in a few lines."""
        if self._found is None:
            return []
        return [*evaluate_lines(self._facts()), f"by request: {self.folder.path / EVALUATION_FILE}"]
