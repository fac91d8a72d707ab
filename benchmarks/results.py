"""What a system's steps took, the same for TRL and for us, and the table that sets them side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launch.files import read_json, write_json

TARGET_RATIO = 1 / 3
"""Our step's time over TRL's, at most."""
HEADERS = (
    "system",
    "steps",
    "s a step",
    "min",
    "max",
    "generate",
    "train",
    "tokens",
    "s/1,000",
    "step/TRL",
    "token/TRL",
)
LEGEND = (
    "s a step, generate, train, tokens: medians of the measured steps; min, max: a step; tokens: completed a step; "
    "s/1,000: seconds for 1,000 completed tokens, all measured steps together; generate: TRL's generate call, with us "
    "the mean of a group's (beside training where asynchronous); train: the rest of TRL's step, our learner's part"
)


@dataclass(slots=True)
class StepTime:
    """One training step, generation included."""

    seconds: float = 0.0
    generate_s: float = 0.0
    train_s: float = 0.0
    num_tokens: int = 0
    """Completed tokens of the step's samples: sampled, up to and including the stop; no padding."""


@dataclass(frozen=True, slots=True)
class SystemTimes:
    """All steps of one system; those before `first` and from `end` on are listed and not measured."""

    name: str
    steps: list[StepTime]
    first: int
    end: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= len(self.steps):
            raise ValueError(f"{self.name}: no steps {self.first} to {self.end} among {len(self.steps)}")

    @property
    def measured(self) -> list[StepTime]:
        return self.steps[self.first : self.end]

    @property
    def median_s(self) -> float:
        return statistics.median(s.seconds for s in self.measured)

    @property
    def median_tokens(self) -> float:
        return statistics.median(s.num_tokens for s in self.measured)

    @property
    def s_per_1000_tokens(self) -> float:
        """Seconds over tokens of all measured steps together, so that a step counts by its size."""
        tokens = sum(s.num_tokens for s in self.measured)
        if tokens == 0:
            raise ValueError(f"{self.name}: no token was completed in {len(self.measured)} measured steps")
        return 1000 * sum(s.seconds for s in self.measured) / tokens

    def write(self, path: Path) -> None:
        """Write every step and the settings as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "SystemTimes":
        """Return what `write` wrote."""
        found = read_json(path)
        return cls(**{**found, "steps": [StepTime(**step) for step in found["steps"]]})


def compared(trl: SystemTimes, ours: Sequence[SystemTimes]) -> list[dict[str, Any]]:
    """Return one row of numbers a system, TRL first; both ratios are the system's time over TRL's."""
    rows = []
    for system in (trl, *ours):
        seconds = [s.seconds for s in system.measured]
        rows.append(
            {
                "system": system.name,
                "measured_steps": len(seconds),
                "median_step_s": system.median_s,
                "min_step_s": min(seconds),
                "max_step_s": max(seconds),
                "median_generate_s": statistics.median(s.generate_s for s in system.measured),
                "median_train_s": statistics.median(s.train_s for s in system.measured),
                "median_tokens": system.median_tokens,
                "s_per_1000_tokens": system.s_per_1000_tokens,
                "step_ratio": system.median_s / trl.median_s,
                "token_ratio": system.s_per_1000_tokens / trl.s_per_1000_tokens,
            }
        )
    return rows


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of `compared` for a terminal."""
    body = [
        [
            row["system"],
            str(row["measured_steps"]),
            *(f"{row[k]:.2f}" for k in ("median_step_s", "min_step_s", "max_step_s")),
            *(f"{row[k]:.2f}" for k in ("median_generate_s", "median_train_s")),
            f"{row['median_tokens']:,.0f}",
            f"{row['s_per_1000_tokens']:.2f}",
            *(f"{row[k]:.3f}" for k in ("step_ratio", "token_ratio")),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (HEADERS, *body)) for i in range(len(HEADERS))]
    lines = []
    for line in (HEADERS, *body):
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def target_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line for each of our systems that says whether the target was met, by step and by token."""
    lines = []
    for row in rows[1:]:
        by_step, by_token = (
            f"{row[k]:.3f} of TRL's time {what}, {'met' if row[k] <= TARGET_RATIO else 'NOT met'}"
            for k, what in (("step_ratio", "a step"), ("token_ratio", "a token"))
        )
        lines.append(f"target (at most 1/3), {row['system']}: {by_step}; {by_token}")
    return "\n".join(lines)
