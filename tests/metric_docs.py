"""Read the metric keys that docs/metrics.md lists."""

import re
from pathlib import Path

from learners.policy_objective import AGES
from lwz_ray.benchmarks.longbench_write import DIMENSIONS
from lwz_ray.benchmarks.texts_measures import MEASURES
from lwz_ray.config import COMPONENTS
from lwz_ray.step_metrics import LENGTH_BUCKETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([a-z0-9_]+/[a-z0-9_<>]+)` \| (.+) \| (.+) \| (.+) \|$")
BUCKETS = (*tuple(f"upto_{edge}" for edge in LENGTH_BUCKETS), f"above_{LENGTH_BUCKETS[-1]}")
AGE_NAMES = tuple(str(age) for age in range(AGES))
BENCHMARKS = ("s_l", "s_l_published", "s_q", "s", "writingbench", "arena_write")
SCORES = (*BENCHMARKS, *(f"s_q_{name}" for name in DIMENSIONS), *MEASURES)
SOURCES = ("books", "plans", "pairs")
"""Sources of texts that tests name; a user chooses others."""
PLACEHOLDERS = {
    "<reward>": COMPONENTS, "<other>": COMPONENTS, "<bucket>": BUCKETS, "<age>": AGE_NAMES, "<score>": SCORES,
    "<source>": SOURCES,
}  # fmt: skip
"""One row may stand for a key of each reward component, bucket of lengths, age of tokens, score or source of texts."""
NO_METRICS = frozenset({"step", "policy_version", "attempt", "time", "superseded"})
"""Fields of a line that say which line it is."""


def documented_keys(page: Path = PAGE) -> set[str]:
    """Return every key that has a row with meaning, unit and healthy range; a key with two rows is an error."""
    rows = [match[1] for line in page.read_text(encoding="utf-8").splitlines() if (match := ROW.match(line))]
    keys = [key for row in rows for key in _expanded(row)]
    twice = {row for row in rows if rows.count(row) > 1}
    if twice:
        raise ValueError(f"{page.name} lists {sorted(twice)} more than once")
    return set(keys)


def _expanded(row: str) -> list[str]:
    """Return the keys that a row stands for."""
    for placeholder, values in PLACEHOLDERS.items():
        if placeholder in row:
            return [key for value in values for key in _expanded(row.replace(placeholder, value))]
    return [row]


def undocumented(metrics: dict[str, object]) -> set[str]:
    """Return the keys of one line of metrics.jsonl that the page does not list."""
    return set(metrics) - NO_METRICS - documented_keys()
