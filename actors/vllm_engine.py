"""The vLLM engine: AsyncLLM with processed logprobs, version-salted prefixes and in-flight weight updates."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any, cast

from actors.engine import EngineSettings
from actors.repetition_stop import SentenceWatch
from actors.streams import CompletionStream, as_they_end
from actors.transcript import Decode, Transcript
from lwz_ray.errors import InfrastructureError
from lwz_ray.records import Completion, FinishReason, RolloutRequest, VersionSpan


class VllmEngine:
    """One AsyncLLM. vLLM is imported in `start`, after the thread settings that it reads at import."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.policy_version = 0
        self._llm = None

    async def start(self) -> None:
        """Build the engine and label its weights as policy version 0."""
        s = self.settings
        _pin_threads(s.threads, s.replica_index)
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(
            model=s.model_path,
            dtype=cast(Any, s.dtype),
            max_model_len=s.max_length_tokens,
            max_num_seqs=s.max_num_seqs,
            tensor_parallel_size=s.tensor_parallel_size,
            kv_cache_memory_bytes=s.kv_cache_mib * 2**20 if s.kv_cache_mib else None,
            gpu_memory_utilization=s.memory_utilization,
            enforce_eager=s.enforce_eager,
            trust_remote_code=s.trust_remote_code,
            seed=s.seed,
            enable_prefix_caching=True,
            # vLLM rewinds a seeded request's generator after a partial prefill, which CPU generators cannot do.
            enable_chunked_prefill=not current_platform.is_cpu(),
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=s.weight_transfer),
            worker_extension_cls="actors.vllm_transfer.WorkerExtension",
            load_format="safetensors",
            disable_log_stats=True,
        )
        self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, args)
        await self._llm.collective_rpc("end_when_orphaned")
        await self._llm.update_weight_version("0")
        if s.weight_transfer == "staged":
            await self.init_transfer({})

    @property
    def llm(self):
        """The AsyncLLM; raises InfrastructureError before `start` and after `close`."""
        if self._llm is None:
            raise InfrastructureError("the vLLM engine is not running")
        return self._llm

    async def stream(self, request: RolloutRequest, request_id: str) -> CompletionStream:
        """Send one request a sample, so that each can end alone; they share the prompt through the prefix cache."""
        works = []
        for i in range(request.num_samples):
            prompt, params = self.sampling_of(request, i)
            works.append(self._sample(prompt, params, f"{request_id}-{i}"))
        async with contextlib.aclosing(as_they_end(works)) as ended:
            async for item in ended:
                yield item

    def sampling_of(self, request: RolloutRequest, sample_index: int) -> tuple[Any, Any]:
        """Return vLLM's prompt and sampling parameters of one sample.

        The salt keeps prefixes computed with other weights from being reused.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

        s, rule = self.settings, self.settings.repetition_stop
        detection = None
        if rule is not None:
            smallest, largest = rule.pattern_sizes
            detection = RepetitionDetectionParams(
                max_pattern_size=largest, min_pattern_size=smallest, min_count=rule.repeats
            )
        params = SamplingParams(
            temperature=s.temperature if request.temperature is None else request.temperature,
            top_p=s.top_p,
            max_tokens=s.max_tokens if request.max_tokens is None else request.max_tokens,
            seed=request.seed + sample_index,
            logprobs=0,
            stop=[s.stop] if s.stop else None,
            include_stop_str_in_output=True,
            repetition_detection=detection,
            # Pieces are only for our own check; without it the whole text comes at once.
            output_kind=RequestOutputKind.DELTA if rule else RequestOutputKind.FINAL_ONLY,
            stream_interval=rule.check_every_tokens if rule else None,
        )
        ids = list(request.prompt_token_ids)
        return TokensPrompt(prompt_token_ids=ids, cache_salt=f"v{self.policy_version}"), params

    async def _sample(self, prompt: Any, params: Any, request_id: str) -> Completion:
        """Write one sample to its end; one whose sentences loop is ended here. A cancelled call ends the request."""
        rule = self.settings.repetition_stop
        transcript = Transcript(SentenceWatch(rule) if rule else None)
        last = None
        async with contextlib.aclosing(self.llm.generate(prompt, params, request_id)) as outputs:
            async for output in outputs:
                (last,) = output.outputs
                pairs = zip(cast(Any, last.logprobs) or (), last.token_ids, strict=True)
                logprobs = [position[token].logprob for position, token in pairs]
                if transcript.add(last.token_ids, logprobs, last.text) and not output.finished:
                    await self.llm.abort(request_id)  # One more output comes, with the version spans.
        if last is None or last.finish_reason is None:
            raise InfrastructureError(f"vLLM ended request {request_id} without its last output")
        reason: FinishReason = last.finish_reason if last.finish_reason in ("stop", "length", "repetition") else "abort"
        spans = [VersionSpan(s.start, s.end, int(s.version)) for s in last.weight_versions or ()]
        unlabelled = VersionSpan(0, transcript.num_tokens, self.policy_version)
        return transcript.completion(reason, spans or [unlabelled], self._decoder(prompt["prompt_token_ids"]))

    def _decoder(self, prompt_token_ids: Sequence[int]) -> Decode:
        """Return the text of a completion's first tokens, with the space that a tokenizer may drop at a beginning."""
        tokenizer, context = self.llm.get_tokenizer(), list(prompt_token_ids[-4:])
        skipped = len(tokenizer.decode(context, skip_special_tokens=True))
        return lambda ids: tokenizer.decode([*context, *ids], skip_special_tokens=True)[skipped:]

    async def pause(self) -> None:
        await self.llm.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        await self.llm.resume_generation()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load staged buckets with one metadata call."""
        await self.start_update()
        await self.receive({"header_paths": list(header_paths)})
        await self.finish_update(policy_version)

    async def init_transfer(self, init_info: dict) -> None:
        """Open the transfer backend (nccl: joins the learner's group)."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_update(self) -> None:
        await self.llm.start_weight_update()

    async def receive(self, update_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_update(self, policy_version: int) -> None:
        await self.llm.finish_weight_update(str(policy_version))
        self.policy_version = policy_version

    async def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def _pin_threads(threads: int, replica_index: int) -> None:
    """Give this replica its own cores, so that replicas and learners do not spin on the same ones (CPU only)."""
    cores = sorted(os.sched_getaffinity(0))
    first = replica_index * threads
    chosen = [cores[(first + i) % len(cores)] for i in range(min(threads, len(cores)))]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(set(chosen)))))
