"""Small benchmarks and texts for tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lwz_ray.benchmarks.records import BANDS, Benchmark, BenchmarkRequest, Criterion
from lwz_ray.config_evaluate import BenchmarkConfig, BenchmarkName
from lwz_ray.text import count_words
from lwz_ray.texts import WrittenText


def benchmark_config(name: BenchmarkName, path: Path | None, **changes: Any) -> BenchmarkConfig:
    base = {
        "name": name,
        "path": None if path is None else str(path),
        "baselines": {},
        "requirements": None,
        "num_requests": None,
        "judge_temperature": 0.0,
        "judge_top_p": 1.0,
    }
    return BenchmarkConfig(**(base | changes))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows as JSON lines; a text goes in as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def written(prompt_id: str, answer: str, prompt: str = "Write.", sample_index: int = 0, **changes: Any) -> WrittenText:
    """Return a text of a direct template: the answer is all that was written."""
    base = {
        "prompt_id": prompt_id,
        "prompt": prompt,
        "language": "en",
        "sample_index": sample_index,
        "answer": answer,
        "think": None,
        "completion": answer,
        "finish_reason": "stop",
        "num_words": count_words(answer),
        "num_think_tokens": 0,
        "num_tokens": 2 * count_words(answer),
        "well_formed": True,
    }
    return WrittenText(**(base | changes))


def words(count: int) -> str:
    """Return a text of that many different words, none of them a number."""
    letters = "abcdefghij"
    return " ".join("".join(letters[int(digit)] for digit in f"{i:04d}") for i in range(count))


def length_benchmark(*required: int, types: str = "essay") -> Benchmark:
    """Return a LongBench-Write of requests with these lengths, ids 0, 1, …"""
    requests = tuple(
        BenchmarkRequest(str(i), f"Write text {i}.", "en", length, {"type": types}) for i, length in enumerate(required)
    )
    return Benchmark("longbench_write", requests, len(requests))


def criterion(name: str) -> Criterion:
    return Criterion(name, f"How good is the {name}?", {band: f"{name} {band}" for band in BANDS})


def criterion_row(name: str) -> dict[str, str]:
    """Return a criterion as the authors' files hold it."""
    return {"name": name, "criteria_description": f"How good is the {name}?"} | {b: f"{name} {b}" for b in BANDS}


def arena(*ids: str, baselines: Iterable[str] = ("north", "south")) -> Benchmark:
    requests = tuple(BenchmarkRequest(i, f"Question {i}?", "en", None, {"type": "essay"}) for i in ids)
    return Benchmark("arena_write", requests, len(requests), {b: {i: f"{b} says {i}" for i in ids} for b in baselines})
