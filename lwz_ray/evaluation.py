"""Held-out evaluation: samples become one number per prompt, prompts become means, means become differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwz_ray.errors import RewardFailure
from lwz_ray.records import Group, Sample
from lwz_ray.statistics import paired_bootstrap
from lwz_ray.text import distinct_n


@dataclass(frozen=True, slots=True, eq=False)
class EvalSummary:
    """One evaluation. The order of `prompt_ids` is the order of every array in `per_prompt`."""

    prompt_ids: tuple[str, ...]
    per_prompt: dict[str, np.ndarray]
    """float64 [num_prompts] by name; NaN where no sample of the prompt has that number."""
    num_samples: int
    failures: dict[str, int]
    """Samples whose reward failed, by component; they are in no mean of that component nor of the total."""

    @property
    def numbers(self) -> dict[str, float]:
        """Return the mean over prompts by name; a name that no prompt has is absent."""
        return {k: float(np.nanmean(v)) for k, v in self.per_prompt.items() if not np.isnan(v).all()}

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes null."""
        arrays = {k: [None if np.isnan(x) else float(x) for x in v] for k, v in self.per_prompt.items()}
        return {
            "prompt_ids": list(self.prompt_ids),
            "per_prompt": arrays,
            "num_samples": self.num_samples,
            "failures": dict(self.failures),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EvalSummary":
        """Return what `as_dict` was made from: a resumed run compares with the evaluation before training."""
        arrays = {
            k: np.array([np.nan if x is None else x for x in v], dtype=np.float64)
            for k, v in data["per_prompt"].items()
        }
        return cls(tuple(data["prompt_ids"]), arrays, int(data["num_samples"]), dict(data["failures"]))


def summarise_evaluation(groups: Sequence[Group], active: Sequence[str], weights: Mapping[str, float]) -> EvalSummary:
    """Return the evaluation of one group per held-out prompt, in the order of the prompts in their source.

    Every number is the mean over a prompt's samples first and over prompts second, so that each prompt counts once.
    Names: each reward component present; `total`, a sample's mean of its active rewards weighted by `weights`
    (over those that it has: one that abstains leaves the rest to decide, one that failed leaves no total);
    `mean_words` in words; the shares `in_range` (of samples with a range), `well_formed`, `truncated` (cut by the
    token limit or their deadline); and the scorer's `measures`, with `distinct_1` and `distinct_2` taken from the
    answer where the scorer gave none.

    Raises ValueError on two groups of one prompt and on a group without samples.
    """
    ordered = sorted(groups, key=lambda group: (group.prompt.index, group.prompt.prompt_id))
    ids = tuple(group.prompt.prompt_id for group in ordered)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids) - len(set(ids))} prompts were evaluated twice in one evaluation")
    empty = [group.prompt.prompt_id for group in ordered if not group.samples]
    if empty:
        raise ValueError(f"prompt {empty[0]} was evaluated without samples")
    rows = [_mean_of_rows([_sample_numbers(s, active, weights) for s in group.samples]) for group in ordered]
    names = sorted({name for row in rows for name in row})
    failures: dict[str, int] = {}
    for group in ordered:
        for sample in group.samples:
            for component, reward in sample.rewards.items():
                if isinstance(reward, RewardFailure):
                    failures[component] = failures.get(component, 0) + 1
    return EvalSummary(
        prompt_ids=ids,
        per_prompt={name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names},
        num_samples=sum(len(group.samples) for group in ordered),
        failures=failures,
    )


def compare(before: EvalSummary, after: EvalSummary, resamples: int, seed: int) -> dict[str, Any]:
    """Return `summary.json`'s `eval`: `before`, `after` and `difference` with 95% intervals by name.

    Only prompts that both evaluations measured enter a difference; `paired_prompts` says how many there were for
    each name. `before` and `after` are means over all prompts of their own evaluation.
    """
    position_before = {prompt_id: i for i, prompt_id in enumerate(before.prompt_ids)}
    position_after = {prompt_id: i for i, prompt_id in enumerate(after.prompt_ids)}
    shared = [prompt_id for prompt_id in before.prompt_ids if prompt_id in position_after]
    rows_before = [position_before[prompt_id] for prompt_id in shared]
    rows_after = [position_after[prompt_id] for prompt_id in shared]
    difference: dict[str, dict[str, float]] = {}
    paired: dict[str, int] = {}
    for name in sorted(before.per_prompt.keys() & after.per_prompt.keys()):
        old = before.per_prompt[name][rows_before]
        new = after.per_prompt[name][rows_after]
        both = ~(np.isnan(old) | np.isnan(new))
        paired[name] = int(both.sum())
        if paired[name]:
            difference[name] = paired_bootstrap(old[both], new[both], resamples, seed).as_dict()
    return {
        "before": before.numbers,
        "after": after.numbers,
        "difference": difference,
        "num_prompts": {"before": len(before.prompt_ids), "after": len(after.prompt_ids)},
        "num_samples": {"before": before.num_samples, "after": after.num_samples},
        "paired_prompts": paired,
        "failures": {"before": dict(before.failures), "after": dict(after.failures)},
    }


def _sample_numbers(sample: Sample, active: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Return what one sample contributes, by name."""
    row = {name: float(value) for name, value in sample.measures.items() if name != "num_words"}
    # The scorer's convention: where there is no answer nothing repeats; `well_formed` and the format reward show it.
    text = sample.parsed.answer or ""
    for n in (1, 2):
        if f"distinct_{n}" not in row:
            row[f"distinct_{n}"] = distinct_n(text, n)
    row["mean_words"] = float(sample.num_words)
    row["well_formed"] = float(sample.parsed.well_formed)
    row["truncated"] = float(sample.completion.finish_reason in ("length", "abort"))
    if sample.prompt.length_range is not None:
        low, high = sample.prompt.length_range
        row["in_range"] = float(low <= sample.num_words <= high)
    row.update({k: float(v) for k, v in sample.rewards.items() if not isinstance(v, RewardFailure)})
    failed = any(isinstance(sample.rewards.get(k), RewardFailure) for k in active)
    present = [k for k in active if k in sample.rewards]
    if present and not failed:
        norm = sum(weights[k] for k in present)
        row["total"] = sum(weights[k] * row[k] for k in present) / norm
    return row


def _mean_of_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean by name over the samples that have that name."""
    names = {name for row in rows for name in row}
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
