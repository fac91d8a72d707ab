"""The vLLM engine: AsyncLLM with processed logprobs, salted prefixes, in-flight weight updates and partial rollouts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

from actors.cores import pin_threads
from actors.engine import EngineLostError, EngineSettings
from actors.load import EngineCounts, EngineLoad
from actors.streams import CompletionStream, PieceStream, as_it_is_written, as_they_end
from actors.tasks import SampleTask, WorkerRequest
from actors.transcript import Decode, Transcript, resumable
from lwz_ray.errors import InfrastructureError
from lwz_ray.records import Completion, FinishReason, VersionSpan

CHECK_ALIVE_EVERY_S = 1.0
"""vLLM leaves calls to an engine process that died unanswered."""
ABORT_AGAIN_S = 0.05
"""A request that vLLM has not registered yet cannot be aborted."""


class VllmEngine:
    """One AsyncLLM. vLLM is imported in `start`, after the thread settings that it reads at import."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.policy_version = 0
        self._llm: Any = None
        self._counts = EngineCounts()
        self._num_updates = 0
        self._interrupted = asyncio.Event()
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="vLLM's parent")
        """The engine process ends with the thread that started it, see `end_with_parent`."""

    async def start(self) -> None:
        """Build the engine and label its weights as policy version 0."""
        s = self.settings
        pin_threads(s.threads, s.replica_index, s.tensor_parallel_size)
        from actors.vllm_build import build

        self._llm = await asyncio.get_running_loop().run_in_executor(self._builder, build, s, self._counts)
        await self._answer(self._llm.collective_rpc("end_when_orphaned"))
        await self._answer(self._llm.update_weight_version("0"))
        if s.weight_transfer == "staged":
            await self.init_transfer({})

    @property
    def llm(self):
        """The AsyncLLM; raises InfrastructureError before `start` and after `close`."""
        if self._llm is None:
            raise InfrastructureError("the vLLM engine is not running")
        return self._llm

    async def stream(self, request: WorkerRequest, request_id: str) -> CompletionStream:
        """Send one request a sample, so that each can end alone; they share the prompt through the prefix cache."""
        works = {t.sample_index: self._sample(request, t, f"{request_id}-{t.sample_index}") for t in request.tasks}
        async with contextlib.aclosing(as_they_end(works)) as ended:
            async for item in ended:
                yield item

    async def pieces(self, request: WorkerRequest, request_id: str) -> PieceStream:
        """Send one request for the only sample and yield its text as vLLM hands it out."""
        (task,) = request.tasks
        written = as_it_is_written(lambda tell: self._sample(request, task, request_id, tell))
        async with contextlib.aclosing(written) as pieces:
            async for piece in pieces:
                yield piece

    def sampling_of(self, request: WorkerRequest, task: SampleTask, written: Sequence[int] = ()) -> tuple[Any, Any]:
        """Return vLLM's prompt and sampling parameters of one sample, of which `written` tokens are there.

        The salt keeps prefixes computed with other weights from being reused. It counts updates, since a policy version
        comes back with other weights after a return to a checkpoint.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams

        s, rule = self.settings, self.settings.repetition_stop
        detection = None
        if rule is not None:
            smallest, largest = rule.pattern_sizes
            detection = RepetitionDetectionParams(
                max_pattern_size=largest, min_pattern_size=smallest, min_count=rule.repeats
            )
        intervals = [n for n in (rule and rule.check_every_tokens, request.piece_tokens) if n is not None]
        params = SamplingParams(
            temperature=s.temperature if request.temperature is None else request.temperature,
            top_p=s.top_p if request.top_p is None else request.top_p,
            max_tokens=self._max_tokens(request) - len(written),
            seed=task.seed,
            logprobs=0,
            stop=[s.stop] if s.stop else None,
            include_stop_str_in_output=True,
            repetition_detection=detection,
            structured_outputs=StructuredOutputsParams(json=request.json_schema) if request.json_schema else None,
            # Pieces are for whoever reads along and for our own check; without them the whole text comes at once.
            output_kind=RequestOutputKind.DELTA if intervals else RequestOutputKind.FINAL_ONLY,
            stream_interval=min(intervals, default=None),
        )
        ids = [*request.prompt_token_ids, *written]
        return TokensPrompt(prompt_token_ids=ids, cache_salt=f"u{self._num_updates}"), params

    def _max_tokens(self, request: WorkerRequest) -> int:
        return self.settings.max_tokens if request.max_tokens is None else request.max_tokens

    async def _sample(
        self,
        request: WorkerRequest,
        task: SampleTask,
        request_id: str,
        tell: Callable[[str], None] = lambda piece: None,
    ) -> Completion:
        """Write one sample to its end, or go on from its prior; tell its text. A cancelled call ends the request."""
        decode = self._decoder(request.prompt_token_ids)
        prior = None if request.json_schema else task.prior  # A grammar begins with the completion: no way to go on.
        room = self.settings.max_length_tokens - len(request.prompt_token_ids)
        if prior is not None and prior.num_tokens >= min(self._max_tokens(request), room) > 0:
            return replace(prior, finish_reason="length")
        if prior is not None:
            prior = resumable(prior, self.settings.stop, decode)
        transcript = Transcript(self.settings.repetition_stop, prior)
        num_prior = transcript.num_tokens
        prompt, params = self.sampling_of(request, task, transcript.token_ids)
        async with self._may_be_cut(request_id, task.remaining_s):
            last = await self._write(prompt, params, request_id, transcript, tell)
        if last is None or last.finish_reason in (None, "error"):
            raise InfrastructureError(f"vLLM ended request {request_id} without its last output or with an error")
        reason: FinishReason = last.finish_reason if last.finish_reason in ("stop", "length", "repetition") else "abort"
        spans = [VersionSpan(s.start, s.end, int(s.version)) for s in last.weight_versions or ()]
        unlabelled = VersionSpan(0, transcript.num_tokens - num_prior, self.policy_version)
        return transcript.completion(reason, spans or [unlabelled], decode)

    async def _write(
        self, prompt: Any, params: Any, request_id: str, transcript: Transcript, tell: Callable[[str], None]
    ) -> Any:
        """Return vLLM's last output of one request; one whose sentences loop is ended here."""
        last = None
        with self._lost_if_dead():
            async with contextlib.aclosing(self.llm.generate(prompt, params, request_id)) as outputs:
                async for output in outputs:
                    (last,) = output.outputs
                    pairs = zip(cast(Any, last.logprobs) or (), last.token_ids, strict=True)
                    logprobs = [position[token].logprob for position, token in pairs]
                    if last.text:
                        tell(last.text)
                    if transcript.add(last.token_ids, logprobs, last.text) and not output.finished:
                        await self.llm.abort(request_id)  # One more output comes, with the version spans.
        return last

    @contextlib.asynccontextmanager
    async def _may_be_cut(self, request_id: str, remaining_s: float | None) -> AsyncIterator[None]:
        """Abort the request at its deadline, or when `interrupt` is called; its last output comes then."""
        interrupted = self._interrupted

        async def cut() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupted.wait(), remaining_s)
            while True:
                await self.llm.abort(request_id)
                await asyncio.sleep(ABORT_AGAIN_S)

        task = asyncio.create_task(cut())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # What an abort dies of, the request dies of too.

    def _decoder(self, prompt_token_ids: Sequence[int]) -> Decode:
        """Return the text of a completion's first tokens, with the space that a tokenizer may drop at a beginning."""
        tokenizer, context = self.llm.get_tokenizer(), list(prompt_token_ids[-4:])
        skipped = len(tokenizer.decode(context, skip_special_tokens=True))
        return lambda ids: tokenizer.decode([*context, *ids], skip_special_tokens=True)[skipped:]

    async def pause(self) -> None:
        """Stop scheduling; in flight: kept, aborted with what they have, or written to their end.

        With `keep`, clearing the cache makes vLLM preempt what runs and compute its cache anew from its tokens. The
        other modes leave nothing that runs, and requests that wait inside of vLLM must not find the old cache.
        """
        mode = self.settings.update_mode
        clear = self.settings.clear_cache or mode != "keep"
        await self._answer(self.llm.pause_generation(mode=mode, clear_cache=clear))
        if mode == "keep" and clear:
            self._counts.num_cleared = self._num_running

    async def resume(self) -> None:
        await self._answer(self.llm.resume_generation())

    async def interrupt(self) -> None:
        """Abort what is in flight; needs no answer of the engine process, so it works on a frozen one."""
        self._interrupted.set()
        self._interrupted = asyncio.Event()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load staged buckets with one metadata call."""
        await self.start_update()
        await self.receive({"header_paths": list(header_paths)})
        await self.finish_update(policy_version)

    async def init_transfer(self, init_info: dict) -> None:
        """Open the transfer backend (nccl: joins the learner's group)."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._answer(self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    async def start_update(self) -> None:
        await self._answer(self.llm.start_weight_update())

    async def receive(self, update_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._answer(self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    async def finish_update(self, policy_version: int) -> None:
        await self._answer(self.llm.finish_weight_update(str(policy_version)))
        self.policy_version = policy_version
        self._num_updates += 1

    async def load(self) -> EngineLoad:
        """Ask the engine process between two of its steps, and every worker process below it."""
        version = await self._answer(self.llm.get_weight_version())
        await self._answer(self.llm.collective_rpc("sign_of_life"))
        counts, cache, num_running = self._counts, self.llm.vllm_config.cache_config, self._num_running
        return EngineLoad(
            policy_version=int(version),
            num_running=num_running,
            num_waiting=self.llm.get_num_unfinished_requests() - num_running,
            cache_usage=counts.cache_usage,
            # vLLM's own number counts a hybrid model's several caches once.
            cache_tokens=cache.kv_cache_size_tokens or cache.num_gpu_blocks * cache.block_size,
            num_preemptions=counts.num_preemptions,
            num_generated_tokens=counts.num_generated_tokens,
        )

    @property
    def _num_running(self) -> int:
        """Sequences that are decoded, by the last step's report: after it some may have ended."""
        return min(self._counts.num_running, self.llm.get_num_unfinished_requests())

    async def _answer(self, call: Awaitable[Any]) -> Any:
        """Wait for the engine process's answer for as long as it lives."""
        task = asyncio.ensure_future(call)
        try:
            with self._lost_if_dead():
                while not (await asyncio.wait({task}, timeout=CHECK_ALIVE_EVERY_S))[0]:
                    if self.llm.errored:
                        raise EngineLostError("it died before it answered")
                return task.result()
        finally:
            task.cancel()

    @contextlib.contextmanager
    def _lost_if_dead(self) -> Iterator[None]:
        """Turn whatever a dead engine process leads to into EngineLostError."""
        try:
            yield
        except Exception as error:
            if self._llm is None or self._llm.errored:
                raise EngineLostError(f"vLLM's engine process is gone: {error}") from error
            raise

    async def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
        self._builder.shutdown(wait=False)
