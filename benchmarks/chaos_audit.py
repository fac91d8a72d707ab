"""What must be true of a run that was killed at random moments, read from the files that it left.

Each check returns the violations that it found, in words; none: it holds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.files import iter_json_lines, read_json

SOURCE_OF = {"rollout": "rollout_lost", "engine": "rollout_lost", "reward": "reward_lost", "learner": "learner_restart"}
"""Source in warnings.jsonl and in the summary's failures, by the kind of process that was killed."""
SHOWN = 5
"""Violations of one kind that are spelled out."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The files of a run folder."""

    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Rows
    samples: Rows
    """Of the train split."""
    warnings: Rows

    @classmethod
    def read(cls, folder: Path) -> "Evidence":
        """Read a run folder; raises OSError or UserError where a file is missing or does not parse."""
        return cls(
            yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
            read_json(folder / "manifest.json"),
            read_json(folder / "summary.json"),
            list(iter_json_lines(folder / "metrics.jsonl")),
            [row for row in iter_json_lines(folder / "samples.jsonl") if row["split"] == "train"],
            list(iter_json_lines(folder / "warnings.jsonl")),
        )

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The surviving history's steps, in the order of the file."""
        return [row for row in self.metrics if not row.get("superseded")]

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """The surviving history's training samples."""
        return [row for row in self.samples if not row.get("superseded")]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check and what it found."""

    name: str
    violations: list[str]
    said: str
    """The numbers behind it."""


def completed(found: Evidence) -> list[str]:
    """The run came to its end."""
    summary, steps = found.summary, found.config["steps"]
    if (summary["status"], summary["steps"]) == ("completed", steps):
        return []
    return [f"status {summary['status']} after {summary['steps']} of {steps} steps: {summary['error']}"]


def balanced(found: Evidence) -> list[str]:
    """admitted = trained + dropped + in flight, in the summary and after every surviving step."""
    groups = found.summary["groups"]
    accounts = [("the summary", groups["admitted"], groups["trained"], sum(groups["dropped"].values()),
                 groups["in_flight"])]  # fmt: skip
    for row in found.steps:
        values = (row[f"groups/{name}"] for name in ("admitted", "trained", "dropped", "in_flight"))
        accounts.append((f"step {row['step']}", *values))
    return [
        f"{where}: admitted {admitted:g}, trained {trained:g} + dropped {dropped:g} + in flight {in_flight:g}"
        for where, admitted, trained, dropped, in_flight in accounts
        if admitted != trained + dropped + in_flight
    ]


def every_step_once(found: Evidence) -> list[str]:
    """The surviving steps are 1, 2, … in this order, by attempts that never go back."""
    steps = [row["step"] for row in found.steps]
    out = []
    if steps != list(range(1, found.summary["steps"] + 1)):
        counts = Counter(steps)
        wanted = set(range(1, found.summary["steps"] + 1))
        missing, twice = sorted(wanted - set(steps)), sorted(s for s in counts if counts[s] > 1)
        out.append(f"missing {missing}, more than once {twice}, beyond the end {sorted(set(steps) - wanted)}")
        if not (missing or twice or set(steps) - wanted):
            out.append("not in order")
    attempts = [row["attempt"] for row in found.steps]
    if attempts != sorted(attempts):
        out.append("a step of an earlier attempt stands behind one of a later attempt")
    return out


def no_group_twice(found: Evidence) -> list[str]:
    """In the surviving history each group is trained in one step, whole, and as many as the account says."""
    size, steps = found.config["group_size"], defaultdict(set)
    indices: dict[int, list[int]] = defaultdict(list)
    for row in found.trained:
        steps[row["group_id"]].add(row["step"])
        indices[row["group_id"]].append(row["sample_index"])
    out = [f"group {g} in steps {sorted(seen)}" for g, seen in steps.items() if len(seen) > 1]
    for group, seen in indices.items():
        if sorted(seen) != list(range(size)) and len(steps[group]) == 1:
            out.append(f"group {group} with samples {sorted(seen)}")
    if len(steps) != found.summary["groups"]["trained"]:
        out.append(f"{len(steps)} groups in samples.jsonl, {found.summary['groups']['trained']} in the account")
    per_step = Counter(step for seen in steps.values() for step in seen)
    wanted = found.config["groups_per_step"]
    out += [f"step {row['step']} trained {per_step[row['step']]} groups, not {wanted}"
            for row in found.steps if per_step[row["step"]] != wanted]  # fmt: skip
    return out


def versions_follow_steps(found: Evidence) -> list[str]:
    """policy_version = steps - skipped steps, at every surviving step and at the end."""
    out, skipped = [], 0
    for row in found.steps:
        skipped += int(row["train/skipped"])
        if row["policy_version"] != row["step"] - skipped:
            out.append(f"step {row['step']}: policy_version {row['policy_version']} with {skipped} skipped")
    summary = found.summary
    if summary["policy_version"] != summary["steps"] - summary["skipped_steps"]:
        out.append(
            f"summary: policy_version {summary['policy_version']}, {summary['steps']} steps, "
            f"{summary['skipped_steps']} skipped"
        )
    if skipped != summary["skipped_steps"]:
        out.append(f"{skipped} skipped steps in metrics.jsonl, {summary['skipped_steps']} in the summary")
    return out


def staleness_bounded(found: Evidence) -> list[str]:
    """No sample was trained that was begun too many versions before, or with weights of a later history."""
    version_before = {1: 0} | {row["step"] + 1: row["policy_version"] for row in found.steps}
    bound, out = found.config["max_staleness"], []
    for row in found.trained:
        trained = version_before.get(row["step"])
        if trained is None:
            out.append(f"group {row['group_id']} in step {row['step']}, which is not in metrics.jsonl")
        elif trained - row["policy_version_min"] > bound:
            out.append(f"group {row['group_id']} in step {row['step']}: {trained - row['policy_version_min']} behind")
        elif row["policy_version_max"] > trained:
            out.append(
                f"group {row['group_id']} in step {row['step']}: written by version {row['policy_version_max']}, "
                f"trained from {trained}"
            )
    return out


def engines_serve_the_newest(found: Evidence) -> list[str]:
    """By logprobs: at the end every engine writes as the learner's weights would; one may still be on its way up."""
    probe, replicas = found.summary.get("probe"), found.config["actors"]["replicas"]
    if probe is None:
        return ["the summary holds no probe"]
    out = [f"{name}: {probe['engines'][name]}" for name in probe["off"]]
    if not 1 <= len(probe["engines"]) <= replicas:
        out.append(f"{len(probe['engines'])} engines at the end, actors.replicas={replicas}")
    return out


def lost_steps_counted(found: Evidence) -> list[str]:
    """lost_steps covers every superseded step; an attempt may have lost one more that was not logged yet."""
    superseded = len(found.metrics) - len(found.steps)
    lost, attempts = found.summary["lost_steps"], found.manifest["attempt"]
    if superseded <= lost <= superseded + attempts - 1:
        return []
    return [f"lost_steps {lost}, but {superseded} superseded lines over {attempts} attempts"]


def failures_counted(found: Evidence, noticed: Mapping[str, int]) -> list[str]:
    """What was killed was noticed. noticed: source -> losses that must have been counted at least."""
    counts = counted(found)
    return [
        f"{source}: {counts[source]} in warnings.jsonl, {least} kills were to be noticed"
        for source, least in sorted(noticed.items())
        if counts[source] < least
    ]


def summary_agrees(found: Evidence) -> list[str]:
    """The summary's failures are those that warnings.jsonl tells of the last job."""
    attempts = [*found.manifest["earlier_attempts"], found.manifest]
    # An attempt with a reason began within a job, because the learners were lost.
    first = max(a["attempt"] for a in attempts if "reason" not in a)
    warned = Counter(row["source"] for row in found.warnings if row["attempt"] >= first)
    failures = found.summary["failures"]
    out = []
    for source in sorted(set(SOURCE_OF.values())):
        said = sum(by_source.get(source, 0) for by_source in failures.values())
        if said != warned[source]:
            out.append(f"{source}: {said} in the summary, {warned[source]} in warnings.jsonl since attempt {first}")
    return out


def counted(found: Evidence) -> Counter[str]:
    """Return how often each source of failures was warned of, over all attempts."""
    return Counter(row["source"] for row in found.warnings)


CHECKS: dict[str, Callable[[Evidence], list[str]]] = {
    "the run completed": completed,
    "admitted = trained + dropped + in flight": balanced,
    "every surviving step once and in order": every_step_once,
    "no group trained twice, each whole": no_group_twice,
    "policy_version = steps - skipped steps": versions_follow_steps,
    "staleness within max_staleness, no later history": staleness_bounded,
    "every engine on the newest weights, by logprobs": engines_serve_the_newest,
    "lost steps counted": lost_steps_counted,
    "failures of the last job as in warnings.jsonl": summary_agrees,
}


def audit(found: Evidence, noticed: Mapping[str, int]) -> list[Verdict]:
    """Run every check; `noticed` is as in `failures_counted`."""
    numbers = figures(found)
    verdicts = [Verdict(name, check(found), numbers.get(name, "")) for name, check in CHECKS.items()]
    known = set(SOURCE_OF.values())
    losses = ", ".join(f"{n} {source}" for source, n in sorted(counted(found).items()) if source in known) or "none"
    return [*verdicts, Verdict("every kill that a supervisor sees counted", failures_counted(found, noticed), losses)]


def figures(found: Evidence) -> dict[str, str]:
    """Return the numbers behind the checks, by their name."""
    summary, groups = found.summary, found.summary["groups"]
    dropped = sum(groups["dropped"].values())
    engines = (summary.get("probe") or {}).get("engines", {})
    means = [seen["mean"] for seen in engines.values() if "mean" in seen]
    names = list(CHECKS)
    superseded = len(found.metrics) - len(found.steps)
    return dict(
        zip(
            names,
            (
                f"{summary['steps']} steps, {found.manifest['attempt']} attempts",
                f"{groups['admitted']} = {groups['trained']} + {dropped} + {groups['in_flight']}",
                f"{len(found.steps)} steps, {superseded} superseded lines",
                f"{len({row['group_id'] for row in found.trained})} groups, {len(found.trained)} samples",
                f"{summary['policy_version']} = {summary['steps']} - {summary['skipped_steps']}",
                f"at most {max((row['staleness/max'] for row in found.steps), default=0):g} versions",
                f"{len(engines)} engines, at most {max(means, default=float('nan')):.2g} nats a token",
                f"{summary['lost_steps']} lost, {summary['restarts']} restarts of the learners",
                f"{sum(sum(by_source.values()) for by_source in summary['failures'].values())} failures",
            ),
            strict=True,
        )
    )


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the audit as a Markdown table, violations below it."""
    lines = ["| what must hold | holds | by the files |", "|---|---|---|"]
    lines += [f"| {v.name} | {'no' if v.violations else 'yes'} | {v.said} |" for v in verdicts]
    for verdict in verdicts:
        for violation in verdict.violations[:SHOWN]:
            lines.append(f"\n{verdict.name}: {violation}")
        if len(verdict.violations) > SHOWN:
            lines.append(f"\n{verdict.name}: and {len(verdict.violations) - SHOWN} more")
    return "\n".join(lines)
