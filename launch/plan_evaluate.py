"""The part of the plan that belongs to `stage=evaluate`: texts, questions, cost, and the memory of the engines."""

from dataclasses import replace

from launch.chat_open import chat_source, engine_config
from launch.evaluate_cost import estimate_judging
from launch.evaluate_judge import NO_JUDGE
from launch.evaluate_texts import read_texts
from launch.memory import Estimate, rollout_estimate
from launch.shapes import ModelShape, shape_of
from lwz_ray.benchmarks.loading import load_benchmark
from lwz_ray.config import Config


def estimates(config: Config, shape: ModelShape | None) -> list[Estimate]:
    """Return the memory of the engines that write, and of those that judge: one after the other, never together.

    shape: of model.path; None where nobody reads it.
    """
    found = [] if shape is None or config.evaluate.texts_path is not None else [rollout_estimate(config, shape)]
    if chat_source(config, "judge") == "engine":
        judge = engine_config(config, "judge")
        one = rollout_estimate(judge, shape_of("evaluate.judge_path", judge.model.path))
        found.append(replace(one, title=f"judge, after the texts: {one.title}"))
    return found


def batch(config: Config) -> list[str]:
    """Return the lines about texts and questions; the benchmark is read, nothing is started."""
    benchmark, evaluate, limit = load_benchmark(config.benchmark), config.evaluate, config.sampling.max_tokens
    num, samples = len(benchmark.requests), evaluate.samples_per_request
    part = "" if benchmark.complete else f" of {benchmark.num_whole}"
    lines = [f"benchmark {benchmark.name}", f"  {num} requests{part} x {samples} samples_per_request"]
    if evaluate.texts_path is not None:
        lines.append(f"  texts of {evaluate.texts_path}: no engine writes")
    else:
        lines.append(f"  {num * samples} texts x at most {limit:,} tokens = {num * samples * limit:,} tokens")
    if chat_source(config, "judge") is None:
        return [*lines, f"  {NO_JUDGE}: judged scores will not be measured"]
    texts = None if evaluate.texts_path is None else read_texts(config, benchmark).texts
    return [*lines, f"  {estimate_judging(config, benchmark, texts).words}"]
