"""Two vLLM engines on one core each for the dispatch bench; texts become exactly as long as the bench says."""

import argparse
import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from actors.engine import EngineSettings
from actors.streams import CompletionStream, StreamCall
from actors.tasks import SampleTask, WorkerRequest
from actors.vllm_engine import VllmEngine
from benchmarks.dispatch_work import NUM_PROMPT_TOKENS, BenchEngine

DECODED_TOKENS = 33
"""Of each sequence while speed is measured: one by the prefill, the others one a step."""
REPEATS = 3


class EndlessEngine(VllmEngine):
    """Writes on past the end of a text: lengths are the bench's, not the model's."""

    def sampling_of(self, request: WorkerRequest, task: SampleTask, written: Sequence[int] = ()) -> tuple[Any, Any]:
        prompt, params = super().sampling_of(request, task, written)
        params.ignore_eos = True
        return prompt, params


class RealEngines:
    """Starts the engines one after the other, each on a core of its own, and closes them."""

    def __init__(self, options: argparse.Namespace, number: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self._cores = [cores[i % len(cores)] for i in range(number)]
        self._num_asked = 0
        self._settings = EngineSettings(
            model_path=str(options.model), dtype="bfloat16", max_length_tokens=options.max_length_tokens,
            max_num_seqs=options.max_num_seqs, temperature=1.0, top_p=1.0, max_tokens=options.max_length_tokens,
            stop="", kv_cache_mib=options.kv_cache_mib, memory_utilization=0.05, enforce_eager=True,
        )  # fmt: skip
        self.engines: list[VllmEngine] = []

    async def __aenter__(self) -> Self:
        for core in self._cores:
            # Read by the engine's own process when it starts.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(core)
            engine = EndlessEngine(self._settings)
            self.engines.append(engine)
            await engine.start()
        cache = self.engines[0].llm.vllm_config.cache_config
        self.block_tokens: int = cache.block_size
        self.cache_tokens = (await self.engines[0].load()).cache_tokens
        return self

    async def __aexit__(self, *error: object) -> None:
        for engine in self.engines:
            await engine.close()

    async def measure_speed(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Return (sequences, seconds a decode step) and (prompt tokens, seconds until the first token).

        The best of a few: the machine is shared. Both engines work at once, as they do in the batch.
        """
        decodes, prefills = [], []
        most = self._settings.max_num_seqs
        for num in sorted({1, 4, most // 2, most}):
            first = min([await self._both(num, 32, 1) for _ in range(REPEATS)])
            whole = min([await self._both(num, 32, DECODED_TOKENS) for _ in range(REPEATS)])
            decodes.append((num, (whole - first) / (DECODED_TOKENS - 1)))
        for num_tokens in (128, 256, 512):
            prefills.append((num_tokens, min([await self._both(1, num_tokens, 1) for _ in range(REPEATS)])))
        return decodes, prefills

    async def _both(self, num: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """Return the seconds until both engines have written `num` sequences of new prompts."""
        started = time.monotonic()
        await asyncio.gather(*(self._write(engine, num, num_prompt_tokens, num_tokens) for engine in self.engines))
        return time.monotonic() - started

    async def _write(self, engine: VllmEngine, num: int, num_prompt_tokens: int, num_tokens: int) -> None:
        self._num_asked += 1
        prompt = tuple(1000 + (self._num_asked * 131 + i * 17) % 40000 for i in range(num_prompt_tokens))
        request = WorkerRequest(prompt, tuple(SampleTask(i, i) for i in range(num)), max_tokens=num_tokens)
        async for _ in engine.stream(request, f"speed-{self._num_asked}"):
            pass

    def bench(self, names: Sequence[str], lengths: Mapping[tuple[int, ...], tuple[int, ...]]) -> dict[str, BenchEngine]:
        """Return the engines, which end each sample at its length."""
        return {
            name: BenchEngine(self._call(engine, lengths), engine.load)
            for name, engine in zip(names, self.engines, strict=True)
        }

    def _call(self, engine: VllmEngine, lengths: Mapping[tuple[int, ...], tuple[int, ...]]) -> StreamCall:
        async def one(request: WorkerRequest, task: SampleTask) -> Any:
            self._num_asked += 1
            length = lengths[request.prompt_token_ids][task.sample_index]
            alone = replace(request, tasks=(task,), max_tokens=length)
            (item,) = [item async for item in engine.stream(alone, f"batch-{self._num_asked}")]
            return item

        async def stream(request: WorkerRequest, timeout_s: float) -> CompletionStream:
            assert len(request.prompt_token_ids) == NUM_PROMPT_TOKENS
            for done in asyncio.as_completed([one(request, task) for task in request.tasks], timeout=timeout_s):
                yield await done

        return stream
