"""The report's tables of `stage=train_rm`: what the reward model sees, and whether it only counts words."""

from collections.abc import Mapping
from typing import Any

from launch.files import iter_json_lines
from launch.pair_lines import PAIR_SPLIT
from launch.report_data import RunData
from launch.report_sections import Section

SETTINGS: tuple[tuple[str, str], ...] = (
    ("Model", "model.path"),
    ("Pairs", "preference.path"),
    ("Held-out pairs", "preference.eval_path"),
    ("Steps", "steps"),
    ("Pairs a step", "preference.pairs_per_step"),
    ("Tokens of a text, at most", "model.max_length_tokens"),
    ("Learning rate", "optimizer.lr"),
    ("Schedule", "preference.lr_schedule"),
    ("Warm-up steps", "optimizer.warmup_steps"),
    ("Centring", "preference.center_coefficient"),
    ("Backend", "learners.backend"),
    ("Learner ranks", "learners.ranks"),
    ("Seed", "seed"),
)
NUM_WORST = 10
EXCERPT = 90
"""Characters of a text in the table of wrong pairs."""


def preference_sections(run: RunData) -> list[Section]:
    """Return the tables; none where the run ended before it was evaluated."""
    found = (run.summary or {}).get("preference") or {}
    if "after" not in found:
        return []
    return [
        _accuracy(found),
        _lengths(found),
        _correlation(found),
        _calibration(found),
        _wrong(run),
        _counts(found),
    ]


def preference_headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return how well the model tells held-out pairs apart, beside length alone, as one sentence."""
    found = (summary or {}).get("preference") or {}
    if "after" not in found:
        return None
    after, alone = found["after"], found["baseline_length"]["macro_accuracy"]["mean"]
    macro, worst = after["macro_accuracy"], found["by_kind"][0]
    return (
        f"On {after['num_pairs']} held-out pairs the chosen text scores higher in {macro['mean']:.1%}, averaged over "
        f"kinds (95% interval {macro['low']:.1%} to {macro['high']:.1%}); length alone reaches {alone:.1%}. The worst "
        f"kind is {worst['kind']}: {worst['mean']:.1%}."
    )


def preference_warnings(summary: Mapping[str, Any], max_length_correlation: float) -> list[str]:
    """Return one sentence for each reason not to trust the model, the gravest first."""
    found = summary.get("preference") or {}
    if "after" not in found:
        return []
    warnings = []
    after, alone = found["after"]["macro_accuracy"], found["baseline_length"]["macro_accuracy"]["mean"]
    if after["low"] <= alone:
        warnings.append(
            f"The reward model is not clearly better than length alone: {after['mean']:.3f} over kinds "
            f"({after['low']:.3f} to {after['high']:.3f}) against {alone:.3f} for “{found['baseline_length']['rule']}”."
        )
    blind = [row["kind"] for row in found["by_kind"] if row["low"] <= 0.5]
    if blind:
        warnings.append(f"Kinds of pairs that it does not clearly tell apart: {', '.join(blind)}.")
    follows = found["length_correlation"]["gap_spearman"]
    if follows is not None and abs(follows) > max_length_correlation:
        warnings.append(f"Its preferences follow the difference in length (rank correlation {follows:+.2f}).")
    dropped = found["train"]["dropped_too_long"] + found["held_out"]["dropped_too_long"]
    if dropped:
        warnings.append(f"Pairs left out because a text was over model.max_length_tokens: {dropped}.")
    return warnings


def _accuracy(found: Mapping[str, Any]) -> Section:
    after, alone, matched = found["after"], found["baseline_length"], found["matched"]
    by_length = {row["kind"]: row for row in alone["by_kind"]}
    rows = [
        _row("all pairs", after["num_pairs"], after["accuracy"], alone["accuracy"]),
        _row("mean over kinds", after["num_pairs"], after["macro_accuracy"], alone["macro_accuracy"]),
        *(_row(row["kind"], row["num_pairs"], row, by_length[row["kind"]]) for row in found["by_kind"]),
    ]
    if matched["num_pairs"]:
        name = f"of about equal length (words differ by at most {matched['match_words']:.0%})"
        rows.append(_row(name, matched["num_pairs"], matched["accuracy"], None))
    before = found["before"]
    note = (
        f"Share of held-out pairs in which the chosen text scores higher; a tie counts half. {after['num_sources']} "
        "sources that training never saw; intervals are a bootstrap over sources. Kinds with the worst first. Length "
        f"alone: “{alone['rule']}”, fitted on the training pairs. Before training, over {before['num_pairs']} pairs: "
        f"{before['accuracy']['mean']:.3f}."
    )
    return Section("Held-out pairwise accuracy", note, ("pairs", "n", "accuracy", "95%", "length alone"), rows)


def _row(name: str, num: int, interval: Mapping[str, Any], alone: Mapping[str, Any] | None) -> tuple[str, ...]:
    length = "–" if alone is None else f"{alone['mean']:.3f}"
    return name, str(num), f"{interval['mean']:.3f}", f"{interval['low']:.3f} to {interval['high']:.3f}", length


def _lengths(found: Mapping[str, Any]) -> Section:
    rows = [
        (
            row["chosen_is"],
            str(row["num_pairs"]),
            f"{row['mean_word_difference']:+.0f}",
            f"{row['accuracy']['mean']:.3f}",
            f"{row['accuracy']['low']:.3f} to {row['accuracy']['high']:.3f}",
        )
        for row in found["by_length_difference"]
    ]
    note = (
        "Words of the chosen text against the rejected one; alike: within 10% of the longer, much: over 50%. A model "
        "that only likes long texts is right in the lower rows and wrong in the upper ones."
    )
    return Section(
        "Accuracy by length difference", note, ("chosen text is", "n", "words, mean", "accuracy", "95%"), rows
    )


def _correlation(found: Mapping[str, Any]) -> Section:
    c = found["length_correlation"]
    rows = [
        ("score and words, all texts", _signed(c["score_pearson"]), _signed(c["score_spearman"])),
        ("differences inside pairs, both ways round", _signed(c["gap_pearson"]), _signed(c["gap_spearman"])),
    ]
    note = (
        "From −1 to 1; 0 where scores say nothing about length. Some is right where cut-off texts are the worse ones."
    )
    return Section("Score and length", note, ("", "Pearson", "Spearman"), rows)


def _calibration(found: Mapping[str, Any]) -> Section:
    calibration = found["calibration"]
    rows = [
        (f"{b['low']:.2f} to {b['high']:.2f}", str(b["num_pairs"]), f"{b['confidence']:.3f}", f"{b['accuracy']:.3f}")
        for b in calibration["bins"]
    ]
    note = (
        "How often the text that the model prefers is the chosen one, by how sure it is (sigma of the score gap, "
        f"folded at one half). Expected calibration error {calibration['expected_error']:.3f}, log-loss "
        f"{found['after']['log_loss']:.3f} nats (0.693 is a coin)."
    )
    return Section("Calibration", note, ("confidence", "n", "mean confidence", "right"), rows)


def _wrong(run: RunData) -> Section:
    """Return the held-out pairs with the most negative gap."""
    lines = [
        line
        for line in iter_json_lines(run.path / "samples.jsonl")
        if line["split"] == PAIR_SPLIT and not line.get("superseded")
    ]
    lines.sort(key=lambda line: (line["chosen_score"] - line["rejected_score"], line["pair_index"]))
    rows = [
        (
            f"{line['chosen_score'] - line['rejected_score']:+.2f}",
            line["kind"] or "–",
            f"{line['chosen_words']}, {line['rejected_words']}",
            _excerpt(line["prompt"]),
            _excerpt(line["rejected"]),
        )
        for line in lines[:NUM_WORST]
        if line["chosen_score"] <= line["rejected_score"]
    ]
    note = (
        f"The {NUM_WORST} lowest gaps of the held-out pairs, as far as they are wrong; whole texts and all scores are "
        "in samples.jsonl."
    )
    return Section("What it gets most wrong", note, ("gap", "kind", "words", "request", "rejected text"), rows)


def _counts(found: Mapping[str, Any]) -> Section:
    train, held_out, rows = found["train"], found["held_out"], found["rows"]
    table = [
        ("rows read", str(rows["read"]), ""),
        ("rows left out as malformed", str(rows["bad_rows"]), ""),
        ("pairs", str(train["pairs"]), str(held_out["pairs"])),
        ("dropped, a text too long", str(train["dropped_too_long"]), str(held_out["dropped_too_long"])),
        ("left out by preference.max_eval_pairs", str(train["left_out"]), str(held_out["left_out"])),
        ("kept", str(train["kept"]), str(held_out["kept"])),
        ("sources", str(train["sources"]), str(held_out["sources"])),
        ("pairs consumed", f"{train['consumed']} ({train['epochs']:.1f} epochs)", ""),
    ]
    return Section("Pairs", "No text is ever cut.", ("", "training", "held out"), table)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
