"""What a reader of a report should know before believing its numbers."""

from typing import Any

from launch.report_data import RunData
from launch.report_evaluate import evaluate_warnings
from launch.report_preference import preference_warnings
from launch.report_side_by_side import side_by_side_warnings
from launch.report_supervised import supervised_warnings
from launch.stage_table import LEARNING

NO_SPREAD_LIMIT = 0.9
TRUNCATED_LIMIT = 0.5


def run_warnings(run: RunData) -> list[str]:
    """Return one sentence for each thing that is not as it should be, the gravest first."""
    found = [*_of_summary(run), *_of_steps(run), *_of_manifest(run)]
    found += [f"{w['source']} (attempt {w['attempt']}): {w['message']}" for w in run.warnings]
    return found


def unbalanced(groups: dict[str, Any]) -> bool:
    """Say whether admitted differs from trained + dropped + in flight."""
    return groups["admitted"] != groups["trained"] + sum(groups["dropped"].values()) + groups["in_flight"]


def _of_summary(run: RunData) -> list[str]:
    summary = run.summary
    if summary is None:
        return ["There is no summary: the run is still running, or it was killed before it could write one."]
    found = []
    if summary["error"]:
        found.append(f"The run failed: {summary['error']}")
    elif summary["status"] != "completed":
        found.append(f"The run was {summary['status']}{_reached(run, summary['steps'])}.")
    if unbalanced(summary["groups"]):
        found.append("The accounting of groups does not balance: a group was lost or counted twice.")
    if summary["skipped_steps"]:
        found.append(f"Steps skipped, because loss or gradient was not finite: {summary['skipped_steps']}.")
    if run.config["stage"] == "train_rm":
        return found + preference_warnings(summary, run.config["watch"]["max_length_correlation"])
    if run.config["stage"] == "evaluate":
        return found + evaluate_warnings(summary)
    if run.config["stage"] in ("report", "pipeline"):
        return found + side_by_side_warnings(summary)
    if run.config["stage"] in ("pretrain", "sft"):
        return found + supervised_warnings(summary)
    if run.config["stage"] != "rl":
        return found
    evaluation = summary["eval"]
    if evaluation is None:
        found.append("There is no evaluation before and after, so nothing here says whether the model learned.")
        return found
    for name, direction, gap in _worse(evaluation["difference"]):
        found.append(
            f"{name} {direction} on held-out prompts: {gap['mean']:+.3f}, 95% interval "
            f"{gap['low']:+.3f} to {gap['high']:+.3f}."
        )
    for when, failures in evaluation.get("failures", {}).items():
        for component, count in failures.items():
            found.append(f"Evaluation samples {when} training whose {component} reward failed: {count}.")
    return found


def _reached(run: RunData, steps: int) -> str:
    """Return how far a run came; the tables of a stage that neither trains nor chains others say so."""
    if run.config["stage"] == "pipeline":
        return f" after stage {steps}"
    return f" after step {steps} of {run.config['steps']}" if run.config["stage"] in LEARNING else ""


def _worse(difference: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Return what got worse with the whole interval on one side of 0."""
    found = []
    for name in ("length", "writing", "format", "total", "distinct_2", "well_formed"):
        if name in difference and difference[name]["high"] < 0:
            found.append((name, "fell", difference[name]))
    for name in ("repetition", "truncated"):
        if name in difference and difference[name]["low"] > 0:
            found.append((name, "rose", difference[name]))
    return found


def _of_steps(run: RunData) -> list[str]:
    found = []
    failures = sum(_numbers(run, "rewards/failures"))
    if failures:
        found.append(f"Rewards that could not be computed while training: {failures:.0f}.")
    worst, limit = max(_numbers(run, "train/mismatch"), default=0.0), run.config["algorithm"]["mismatch_warning"]
    if worst > limit:
        found.append(
            f"Engine and learner disagree by up to {worst:.3f} nats a token (train/mismatch; above {limit} "
            "the ratio measures the engine more than the policy)."
        )
    for component in (run.summary or {}).get("active_rewards", []):
        shares = _numbers(run, f"rewards/{component}_no_spread")
        if shares and sum(shares) / len(shares) > NO_SPREAD_LIMIT:
            found.append(f"The {component} reward had no spread in most groups, so it hardly steered learning.")
    truncated = _numbers(run, "rollout/truncated")
    if truncated and truncated[-1] > TRUNCATED_LIMIT:
        found.append(f"At the last step the token limit cut {truncated[-1]:.0%} of the samples.")
    if run.num_superseded and run.config["stage"] in LEARNING:
        found.append(f"Steps that a resume replaced, not drawn here: {run.num_superseded}.")
    return found


def _of_manifest(run: RunData) -> list[str]:
    git = run.manifest["git"]
    if git["revision"] == "unknown":
        return ["The revision of the code is unknown: pass run.git_revision where the code travels without .git."]
    return ["The code had changes that no commit holds (git: dirty)."] if git["dirty"] else []


def _numbers(run: RunData, key: str) -> list[float]:
    return [step[key] for step in run.steps if step.get(key) is not None]
