"""`stage=generate`: texts to the prompts of `data`, or one text that streams to the terminal.

prompts ─▶ template ─▶ engines ─▶ plan and work apart ─▶ written/ (one by one) ─▶ texts.jsonl
"""

import asyncio
import contextlib
import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from actors.streams import PieceCall
from actors.tasks import SampleTask, WorkerRequest
from launch.files import iter_json_lines
from launch.hub import with_local_models
from launch.lease import Lease
from launch.report import write_report
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.terminal_stream import TerminalStream
from launch.text_account import text_account
from launch.text_store import TEXTS_FILE, TextStore
from launch.text_writer import TextWriter
from launch.trackers import ClosableTracker, JsonlTracker, MultiTracker
from launch.wandb_tracker import WandbTracker
from lwz_ray.config import Config
from lwz_ray.data import PromptSet, load_prompts
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError
from lwz_ray.ranges import read_length_range
from lwz_ray.records import Prompt
from lwz_ray.text import detect_language
from lwz_ray.texts import WrittenText

SPLIT = "texts"
"""Of the lines of samples.jsonl."""
PIECE_TOKENS = 1
"""Between two pieces of a text that streams to the terminal."""


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    config = with_local_models(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    encoder = PromptEncoder(tokenizer, config.template)
    prompts = read_prompts(config, encoder)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(GenerateStage(config, lease, folder, prompts, encoder).run())


def read_prompts(config: Config, encoder: PromptEncoder | None) -> PromptSet:
    """Return the first `generate.num_prompts` prompts of `data`, or the one of `generate.text`, and counts of rows.

    Without an encoder (before anything is loaded) no prompt is taken for too long.
    """
    wanted = config.generate
    if wanted.text is not None:
        name = hashlib.sha256(wanted.text.encode()).hexdigest()[:12]
        prompt = Prompt(name, wanted.text, detect_language(wanted.text), read_length_range(wanted.text), 0)
        tokens, limit = encoder.num_tokens(prompt) if encoder else 0, config.model.max_length_tokens
        if tokens >= limit:
            raise UserError(
                f"generate.text has {tokens:,} tokens with its template, and model.max_length_tokens={limit} leaves no "
                "room for an answer: raise it, or shorten the request"
            )
        return PromptSet([prompt], {"read": 1, "kept": 1})
    found = load_prompts(config.data, "abstain", encoder.num_tokens if encoder else lambda _: 0)
    return PromptSet(found.prompts[: wanted.num_prompts], found.counts)


class GenerateStage:
    """One attempt of a run."""

    def __init__(
        self, config: Config, lease: Lease, folder: RunFolder, prompts: PromptSet, encoder: PromptEncoder
    ) -> None:
        """prompts: with the counts of their rows; encoder: of the model's tokenizer."""
        self.config, self.folder, self.encoder = config, folder, encoder
        self.prompts, self.rows = prompts.prompts, prompts.counts
        self._asked = {prompt.prompt_id: prompt.length_range for prompt in prompts.prompts}
        self.wanted = [(p, index) for p in prompts.prompts for index in range(config.generate.samples_per_prompt)]
        self.store = TextStore(folder.path, config)
        self._started = time.monotonic()
        # Standard output holds the text that is asked for on the command line, and nothing else.
        self._one_off = config.generate.text is not None
        self._life = Lifecycle(config, lease, sys.stderr if self._one_off else None)
        self._tracker: MultiTracker | None = None
        self._writer: TextWriter | None = None

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        done = self._present()
        self._life.say(f"run folder: {self.folder.path}")
        there = f", {len(done)} are there already" if done else ""
        self._life.say(f"{len(self.prompts)} prompts of {self.rows['read']} rows, {len(self.wanted)} texts{there}")
        self._open_trackers(done)
        if len(done) < len(self.wanted):
            # That of other requests or settings must not pass for this one's, should it not come to its end.
            (self.folder.path / TEXTS_FILE).unlink(missing_ok=True)
            await self._write()
        elif self._one_off:
            for text in done:
                self._show(text)
        self.store.publish(self._present())
        self._life.finished = True

    async def _write(self) -> None:
        """Write with engines what is missing."""
        self._life.connect()
        self._life.say(f"starting engines (Ray's logs: {self._life.logs})")
        rooms = Rooms(self.config, 0)  # no weights are published in this stage
        try:
            # What the cluster says of itself must not end up in the text either.
            with contextlib.redirect_stdout(sys.stderr) if self._one_off else contextlib.nullcontext():
                await rooms.start()
            self._writer = TextWriter(self.config, rooms.rollouts, self.encoder, self.store, self._report, self._sample)
            if self._one_off:
                await self._stream(rooms, self._writer)
            else:
                await self._writer.run(self.prompts, self.config.generate.samples_per_prompt)
        finally:
            await rooms.close()

    async def _stream(self, rooms: Rooms, writer: TextWriter) -> None:
        """Show the texts one after the other, those that are missing while an engine writes them."""
        writer.begin(self.wanted)
        call = next(iter(rooms.rollout_replicas.piece_calls.values()))
        for prompt, index in self.wanted:
            text = self.store.get(prompt, index)
            if text is None:
                await self._read_along(call, writer, prompt, index)
            else:
                self._show(text)

    async def _read_along(self, call: PieceCall, writer: TextWriter, prompt: Prompt, index: int) -> None:
        asked = writer.request(prompt, index)
        task = SampleTask(index, asked.seed, remaining_s=self.config.actors.sample_deadline_s)
        request = WorkerRequest(
            tuple(asked.prompt_token_ids), (task,), max_tokens=asked.max_tokens, piece_tokens=PIECE_TOKENS
        )
        terminal = TerminalStream(self.config.template)
        try:
            async with contextlib.aclosing(call(request, self.config.actors.request_timeout_s)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        terminal.feed(piece)
                    else:
                        writer.keep(prompt, index, piece)
        finally:
            terminal.close()

    def _show(self, text: WrittenText) -> None:
        terminal = TerminalStream(self.config.template)
        terminal.feed(text.completion)
        terminal.close()

    def _present(self) -> list[WrittenText]:
        """Return the texts that are there, in the order of their requests."""
        return [text for one in self.wanted if (text := self.store.get(*one)) is not None]

    def _open_trackers(self, done: Sequence[WrittenText]) -> None:
        """Bring the run folder's lines in step with the texts that are there."""
        there = {(text.prompt_id, text.sample_index, text.completion): text for text in done}
        if self.folder.attempt > 1:
            # Lines of other requests or settings are none of this attempt's history.
            others = self._told() - there.keys()
            self.folder.mark_superseded(None if others or not done else len(done))
        told = self._told()
        self.folder.append_lines([self._line(text, len(done)) for key, text in there.items() if key not in told])
        trackers: list[ClosableTracker] = [JsonlTracker(self.folder)]
        if self.config.tracking.wandb:
            trackers.append(WandbTracker(self.config, self.folder))
        self._tracker = MultiTracker(trackers)

    def _told(self) -> set[tuple[Any, Any, Any]]:
        """Return prompt id, sample index and completion of the lines of `samples.jsonl` that count."""
        lines = (line for line in iter_json_lines(self.folder.samples) if not line.get("superseded"))
        return {(line.get("prompt_id"), line.get("sample_index"), line.get("completion")) for line in lines}

    def _sample(self, text: WrittenText) -> None:
        assert self._writer is not None
        self.folder.append_lines([self._line(text, self._writer.num_done)])

    def _line(self, text: WrittenText, step: int) -> dict[str, Any]:
        """Return a line of `samples.jsonl`."""
        return {"step": step, "split": SPLIT, **text.as_dict(), "length_range": self._asked[text.prompt_id]}

    def _report(self, metrics: dict[str, Any], words: str) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)
        if self.config.tracking.progress:
            self._life.say(words)

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        texts = self._present()
        account = text_account(self.prompts, texts, self.config.rewards.format.repetition_ngram)
        summary = RunSummary(
            stage="generate",
            status=status,
            steps=len(texts),
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=self._writer.num_tokens if self._writer else 0,
            tokens_trained=0,
            active_rewards=(),
            error=error,
            measured={"generate": {"rows": self.rows, "wanted": len(self.wanted), **account}},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        if status == "completed":
            self._life.say(f"{len(texts)} texts: {self.folder.path / TEXTS_FILE}")
        self._life.say(f"status: {status}\nreport: {report}")
