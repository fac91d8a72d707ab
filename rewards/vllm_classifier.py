"""The reward model on vLLM's pooling runner; the one place of this room that imports vllm."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lwz_ray.config import WritingRewardConfig
from rewards.pairs import ClassifierScores, check_folder, load_encoder, score_pairs


class VllmClassifier:
    """Scores pairs of request and answer with vLLM, which batches them itself; the raw scalar, no activation.

    The model is split over `num_gpus`, or runs on `threads` CPU threads.
    """

    def __init__(self, config: WritingRewardConfig, threads: int, num_gpus: int) -> None:
        folder = check_folder(config)
        from vllm import LLM, PoolingParams

        self._config = config
        self._encoder = load_encoder(folder)
        self._params = PoolingParams(use_activation=False)
        with _engine_environment(threads if num_gpus == 0 else None):
            self._llm = LLM(
                model=str(folder),
                runner="pooling",
                dtype=config.dtype,
                max_model_len=config.max_length_tokens,
                tensor_parallel_size=max(1, num_gpus),
                max_num_seqs=config.batch_size,
                # On a CPU this is the share of RAM that must be free at start, and the cache has a fixed size.
                gpu_memory_utilization=config.memory_utilization,
                kv_cache_memory_bytes=None if num_gpus else config.kv_cache_mib * 2**20,
                enforce_eager=num_gpus == 0,  # compiling takes minutes on a CPU and gains little in one forward a pair
                enable_prefix_caching=False,
                trust_remote_code=False,
                load_format="safetensors",
                disable_log_stats=True,
            )

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        """Return one raw scalar a pair, in order; a text over the context is scored in windows."""
        return score_pairs(self._encoder, self._config, prompts, texts, self._score_rows)

    def _score_rows(self, rows: Sequence[list[int]]) -> list[float]:
        from vllm.inputs import TokensPrompt

        outputs = self._llm.classify(
            [TokensPrompt(prompt_token_ids=ids) for ids in rows], pooling_params=self._params, use_tqdm=False
        )
        return [float(o.outputs.probs[0]) for o in outputs]

    def close(self) -> None:
        """End the engine's child process."""
        self._llm.llm_engine.engine_core.shutdown()


@contextmanager
def _engine_environment(threads: int | None) -> Iterator[None]:
    """Limit the CPU threads of an engine that starts here; its child process reads the variables once, at its start.

    The threads stay unbound: replicas that share cores are counted, not placed, and binding each of them to the first
    cores would stack them there.
    """
    wanted = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
