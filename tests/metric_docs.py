"""Read the metric keys that docs/metrics.md lists."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([a-z0-9_]+/[a-z0-9_]+)` \| (.+) \| (.+) \| (.+) \|$")
NO_METRICS = frozenset({"step", "policy_version", "attempt", "time", "superseded"})
"""Fields of a line that say which line it is."""


def documented_keys(page: Path = PAGE) -> set[str]:
    """Return every key that has a row with meaning, unit and healthy range; a key with two rows is an error."""
    keys = [match[1] for line in page.read_text(encoding="utf-8").splitlines() if (match := ROW.match(line))]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"{page.name} lists {sorted(twice)} more than once")
    return set(keys)


def undocumented(metrics: dict[str, object]) -> set[str]:
    """Return the keys of one line of metrics.jsonl that the page does not list."""
    return set(metrics) - NO_METRICS - documented_keys()
