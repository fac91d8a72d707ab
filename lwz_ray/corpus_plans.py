"""Plans that a policy wrote before its texts, as documents to pretrain on.

samples ─▶ training prompts ─▶ plan ─▶ finished ─▶ length reward ─▶ words ─▶ new ─▶ documents

The paper mixes 1% of such plans, written by the policy of a first RL run, into continual pretraining.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lwz_ray.config_curate import PlansConfig
from lwz_ray.templates import parse_completion
from lwz_ray.text import count_words

LEFT_OUT = (
    "superseded", "held_out", "no_plan", "unfinished", "no_reward", "low_reward", "short", "duplicate", "over_limit",
)  # fmt: skip
"""Why a sample gives no plan, in the order of the checks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One line of `plans.jsonl`; `text` is the document."""

    text: str
    prompt_id: str
    language: str
    request: str
    plan: str
    num_words: int
    """Of the plan."""
    length_reward: float | None
    step: int
    sample_index: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def distill(
    lines: Iterable[Mapping[str, Any]], settings: PlansConfig, prefill: str
) -> tuple[list[Plan], dict[str, int]]:
    """Return the plans of a run's samples in their order, and counts: read = kept + those left out by reason.

    lines: of `samples.jsonl`; prefill: of the run's template. Samples to held-out prompts are never taken. Where there
    are more than `max_plans`, those with the highest length reward stay, among equals the longest, then the latest.
    """
    found: dict[str, Plan] = {}
    counts: Counter[str] = Counter()
    for line in lines:
        counts["read"] += 1
        plan = _plan(line, settings, prefill)
        if isinstance(plan, str):
            counts[plan] += 1
        elif plan.plan in found:
            counts["duplicate"] += 1
        else:
            found[plan.plan] = plan
    plans = list(found.values())
    if settings.max_plans is not None and len(plans) > settings.max_plans:
        best = sorted(plans, key=lambda p: (-(p.length_reward or 0.0), -p.num_words, -p.step, p.sample_index))
        counts["over_limit"] = len(plans) - settings.max_plans
        chosen = {p.plan for p in best[: settings.max_plans]}
        plans = [p for p in plans if p.plan in chosen]
    counts["kept"] = len(plans)
    return plans, {name: counts[name] for name in ("read", "kept", *LEFT_OUT)}


def document(request: str, plan: str) -> str:
    """Return what is trained on: the request, then the plan in its tags, as the think arm writes it."""
    return f"{request}\n\n<think>\n{plan}\n</think>\n"


def _plan(line: Mapping[str, Any], settings: PlansConfig, prefill: str) -> Plan | str:
    """Return the plan of a line, or why there is none."""
    if line.get("superseded"):
        return "superseded"
    if line["split"] != "train":
        return "held_out"
    plan = parse_completion(line["completion"], "think", prefill).think
    if not plan:
        return "no_plan"
    if settings.on_unfinished == "drop" and "</think>" not in line["completion"]:
        return "unfinished"
    reward = line["rewards"].get("length")
    reward = float(reward) if isinstance(reward, (int, float)) else None
    if reward is None and settings.min_reward > 0:
        return "no_reward"
    if reward is not None and reward < settings.min_reward:
        return "low_reward"
    words = count_words(plan)
    if words < settings.min_plan_words:
        return "short"
    return Plan(
        document(line["prompt"], plan), line["prompt_id"], line["language"], line["prompt"], plan, words, reward,
        line["step"], line["sample_index"],
    )  # fmt: skip
