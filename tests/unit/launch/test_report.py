"""The report: rendered from files that a run wrote, read back as a browser would."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from launch.files import read_json
from launch.report import write_report
from launch.report_data import read_run
from launch.report_page import headline
from launch.report_warnings import run_warnings
from launch.run_folder import RunFolder
from launch.stages import report as report_stage
from launch.summary import GroupCounts, RunSummary
from lwz_ray.errors import RewardFailure, UserError
from lwz_ray.evaluation import compare, summarise_evaluation
from lwz_ray.records import Group

REQUESTS = (
    ("Write a letter to a lighthouse keeper. Use between 60 and 80 words.", "en"),
    ("请写一篇关于秋天的短文，不少于一百字。", "zh"),
    ("Write a speech <script>alert(1)</script> for a village fair, about 70 words.", "en"),
)
TEXTS = {
    ("en", "before"): "Dear Sir, the lamp. Dear Sir, the lamp. Dear Sir, the lamp.",
    ("en", "after"): "Dear keeper,\n\nThe storm took our mast on Tuesday, and your light brought us home. " * 4,
    ("zh", "before"): "秋天很好。秋天很好。",
    ("zh", "after"): "秋天到了，山上的枫叶一片一片地红起来。清晨的雾还没有散，田里的人已经开始收割。" * 3,
}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Check that tags nest, and collect what the page would load and show."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.shown = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.shown.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())


def learning_curve(step):
    """Return plausible metrics of one step of 20."""
    share = step / 20
    return {
        "step": step,
        "policy_version": step - 1,
        "rewards/length": 0.45 + 0.4 * share + 0.03 * np.sin(step),
        "rewards/format": 0.9 + 0.05 * share,
        "rewards/total": 0.68 + 0.22 * share,
        "rewards/failures": 1 if step == 2 else 0,
        "rollout/mean_words": 70 - 20 * share + 3 * np.cos(step * 2),
        "rollout/in_range": 0.3 + 0.4 * share,
        "rollout/well_formed": 0.95,
        "rollout/truncated": 0.05,
        "rollout/repetition": 0.03,
        "rollout/distinct_2": 0.9,
        "rollout/tokens_per_s": 300 + 10 * np.sin(step),
        "staleness/mean": 0.5 if step > 1 else 0.0,
        "staleness/max": 1 if step > 1 else 0,
        "train/clip_fraction": 0.01 * share,
        "train/grad_norm": float("nan") if step == 7 else 1.5 - 0.5 * share,
        "train/mismatch": 0.03,
        "time/step_s": 12.0,
    }


@pytest.fixture
def run_folder(make_config, make_sample):
    """Write a whole run: 20 steps with a resume after step 10, evaluations, samples, a warning, a summary."""
    first = RunFolder.open(make_config(run={"resume": "auto"}), environ={})
    for step in range(1, 13):
        first.append_metrics(learning_curve(step))

    def evaluate(folder, when, step):
        groups = []
        for index in (2, 0, 1):
            request, language = REQUESTS[index]
            samples = tuple(
                make_sample(
                    f"<answer>{TEXTS[language, when]}</answer>",
                    index=index,
                    sample_index=i,
                    request=request,
                    language=language,
                    num_words=20 if when == "after" else 9,
                    rewards={
                        "length": 0.9 - 0.1 * index if when == "after" else 0.3 + 0.1 * index,
                        "format": RewardFailure("format", "gave <b>no</b> answer", "data") if index == 2 else 1.0,
                    },
                )
                for i in (0, 1)
            )
            groups.append(Group(index, samples[0].prompt, samples))
            folder.append_samples(samples, [], step, f"eval_{when}")
        return summarise_evaluation(groups, ("length", "format"), {"length": 1.0, "format": 1.0})

    before = evaluate(first, "before", 0)
    folder = RunFolder.open(make_config(run={"resume": "auto"}), ["python", "-m", "lwz_ray.main", "run=demo_cpu"], {})
    folder.mark_superseded(10)
    for step in range(11, 21):
        folder.append_metrics(learning_curve(step))
        folder.append_samples([make_sample("never shown")], [0.5], step, "train")
    folder.warn("wandb", "could not start & more")
    after = evaluate(folder, "after", 20)
    folder.write_summary(
        RunSummary(
            stage="rl",
            status="completed",
            steps=20,
            skipped_steps=1,
            policy_version=19,
            wall_s=254.0,
            groups=GroupCounts(admitted=90, trained=80, dropped={"too_stale": 7}, in_flight=3),
            tokens_generated=123456,
            tokens_trained=98765,
            active_rewards=("length", "format"),
            eval=compare(before, after, 1000, 1),
        )
    )
    return folder


def test_the_page_stands_alone(run_folder):
    path = write_report(run_folder.path)
    assert path == run_folder.report
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert {link[1:] for link in page.links} == set(ids)
    assert not list(run_folder.path.glob(".*"))


def test_what_the_page_says(run_folder):
    page = Page(write_report(run_folder.path).read_text(encoding="utf-8"))
    assert "the length reward rose from 0.400 to 0.800: +0.400, 95% interval +0.200 to +0.600." in page.text
    assert "length reward 0.400 0.800 +0.400 +0.200 to +0.600 higher" in page.text
    assert "format reward 1.000 1.000 +0.000 +0.000 to +0.000 no clear change" in page.text
    assert "Took 4 min 14 s" in page.text
    assert "90 admitted = 80 trained + 7 dropped + 3 in flight at the end." in page.text
    assert "dropped: too stale 7" in page.text
    assert "python -m lwz_ray.main run=demo_cpu" in page.text
    assert "Code revision 0123abc" in page.text
    assert "3 prompts, 6 samples after training (6 before)" in page.text
    assert "format failed: gave <b>no</b> answer" in page.text


def test_samples_come_in_the_order_of_their_file(run_folder):
    text = write_report(run_folder.path, num_samples=2).read_text(encoding="utf-8")
    page = Page(text)
    assert page.text.index("lighthouse keeper") < page.text.index("请写一篇关于秋天的短文")
    assert "village fair" not in page.text
    assert page.text.count("finish: stop") == 4
    assert "20 characters, asked for 18 to 22" in page.text
    assert text.count('<div class="prose" lang="zh"') == 2
    assert "never shown" not in text
    everything = Page(write_report(run_folder.path).read_text(encoding="utf-8"))
    assert "<script>alert(1)</script>" in everything.text


def test_curves_are_svg_with_gaps_and_tooltips(run_folder):
    text = write_report(run_folder.path).read_text(encoding="utf-8")
    charts = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    by_label = {chart.attrib["aria-label"]: chart for chart in charts}
    rewards = by_label["Reward by component by step"]
    titles = [title.text for title in rewards.iter("title")]
    assert len(titles) == 40
    assert titles[0] == "step 1: length 0.495"
    (norm,) = by_label["Gradient norm by step"].findall("path")
    assert norm.attrib["d"].count("M") == 2
    assert len(list(by_label["Gradient norm by step"].iter("title"))) == 19


def test_superseded_lines_are_not_drawn(run_folder):
    run = read_run(run_folder.path, 1)
    assert [step["step"] for step in run.steps] == list(range(1, 21))
    assert run.steps[10]["attempt"] == 2
    assert run.num_superseded == 2


def test_warnings(run_folder):
    found = run_warnings(read_run(run_folder.path, 1))
    assert found == [
        "Steps skipped, because loss or gradient was not finite: 1.",
        "Evaluation samples before training whose format reward failed: 2.",
        "Evaluation samples after training whose format reward failed: 2.",
        "Rewards that could not be computed while training: 1.",
        "Steps that a resume replaced, not drawn here: 2.",
        "wandb (attempt 2): could not start & more",
    ]


def test_a_run_without_a_summary(make_config):
    folder = RunFolder.open(make_config(), environ={})
    page = Page(write_report(folder.path).read_text(encoding="utf-8"))
    assert "no summary" in page.text
    assert "There is no summary: the run is still running, or it was killed" in page.text
    assert "Accounting" not in page.text
    folder.append_metrics({"step": 1, "rewards/length": 0.5})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "rew')
    assert "step 1: length 0.5" in write_report(folder.path).read_text(encoding="utf-8")


def test_a_failed_run_and_a_broken_ledger(make_config):
    folder = RunFolder.open(make_config(), environ={})
    folder.write_summary(
        RunSummary(
            stage="rl",
            status="failed",
            steps=3,
            skipped_steps=0,
            policy_version=3,
            wall_s=9.0,
            groups=GroupCounts(admitted=9, trained=8, dropped={}, in_flight=0),
            tokens_generated=1,
            tokens_trained=1,
            active_rewards=("length",),
            error="the engine <died>",
        )
    )
    page = Page(write_report(folder.path).read_text(encoding="utf-8"))
    assert "The run failed: the engine <died>" in page.text
    assert "The accounting of groups does not balance" in page.text
    assert "9 admitted ≠ 8 trained + 0 dropped + 0 in flight" in page.text


def test_the_stage_renders_again(run_folder, make_config, capsys):
    assert report_stage.run(make_config(stage="report")) == 0
    assert capsys.readouterr().out == f"report: {run_folder.report}\n"
    assert read_json(run_folder.manifest)["attempt"] == 2
    with pytest.raises(UserError, match=r"run\.name=other: there is no run folder .*; check run\.dir and run\.name"):
        report_stage.run(make_config(stage="report", run={"name": "other"}))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        write_report(tmp_path)


def test_headline_says_when_chance_explains_it():
    evaluation = {
        "before": {"length": 0.5},
        "after": {"length": 0.52},
        "difference": {"length": {"mean": 0.02, "low": -0.1, "high": 0.14}},
    }
    assert headline({"eval": evaluation}) == (
        "On held-out prompts the length reward went, within what chance explains, from 0.500 to 0.520: +0.020, "
        "95% interval -0.100 to +0.140."
    )
    assert headline({"eval": None}) is None
