"""Building an AsyncLLM from our settings. Imported once the thread settings that vLLM reads at import are made."""

from typing import Any, cast

from vllm import AsyncEngineArgs
from vllm.config import StructuredOutputsConfig, WeightTransferConfig
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerFactory

from actors.engine import EngineSettings
from actors.load import EngineCounts
from actors.vllm_transfer import bound


def build(settings: EngineSettings, counts: EngineCounts) -> AsyncLLM:
    """Return an AsyncLLM whose processes end with this one; of vLLM's statistics only our counts are kept."""
    config = _arguments(settings).create_engine_config(UsageContext.ENGINE_CONTEXT)
    executor = bound(Executor.get_class(config))
    return AsyncLLM(config, executor, log_stats=False, log_requests=False, stat_loggers=[_logger_into(counts)])


def _arguments(s: EngineSettings) -> AsyncEngineArgs:
    return AsyncEngineArgs(
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
        # Free to write white space between the parts of an object, small models write nothing else.
        structured_outputs_config=StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True),
        weight_transfer_config=WeightTransferConfig(backend=s.weight_transfer),
        worker_extension_cls="actors.vllm_transfer.WorkerExtension",
        load_format="safetensors",
    )


def _logger_into(counts: EngineCounts) -> StatLoggerFactory:
    """Return a vLLM logger that keeps counts of the reports that come with each step's output."""

    class Counter(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """Need nothing of the engine's config."""

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            if scheduler_stats is not None:
                counts.num_running = scheduler_stats.num_running_reqs
                counts.cache_usage = scheduler_stats.kv_cache_usage
            if iteration_stats is not None:
                counts.preempted(iteration_stats.num_preempted_reqs)
                counts.num_generated_tokens += iteration_stats.num_generation_tokens

        def log_engine_initialized(self) -> None:
            """Write nothing."""

    return Counter
