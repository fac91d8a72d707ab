"""The report of stage=generate, from texts given here."""

from collections.abc import Callable

from launch.files import to_json
from launch.report import write_report
from launch.report_data import read_run
from launch.report_generate import generate_sections
from launch.run_folder import RunFolder
from launch.summary import GroupCounts, RunSummary
from launch.text_account import text_account
from launch.text_store import TEXTS_FILE
from lwz_ray.config import Config
from lwz_ray.records import Prompt
from lwz_ray.texts import WrittenText

PROMPTS = [Prompt("a", "Write <b>two</b> words.", "en", (2, 3), 0), Prompt("b", "写四个字。", "zh", (6, 9), 1)]
ROWS = [
    {"prompt_id": "a", "prompt": PROMPTS[0].text, "answer": "Snow & ice", "finish_reason": "stop", "num_tokens": 9,
     "think": "Cold things.", "num_think_tokens": 3},
    {"prompt_id": "b", "prompt": PROMPTS[1].text, "answer": "", "finish_reason": "length", "num_tokens": 4,
     "completion": "雪雪雪雪", "well_formed": False},
]  # fmt: skip


def test_the_page_tells_of_length_form_and_shows_texts(make_config: Callable[..., Config]):
    texts = [WrittenText.from_dict(row, "a row") for row in ROWS]
    folder = RunFolder.open(make_config(stage="generate"), command=["main", "stage=generate"], environ={})
    (folder.path / TEXTS_FILE).write_text("".join(to_json(text.as_dict()) + "\n" for text in texts), encoding="utf-8")
    account = text_account(PROMPTS, texts, 3)
    folder.write_summary(
        RunSummary(
            stage="generate", status="completed", steps=2, skipped_steps=0, policy_version=0, wall_s=5.0,
            groups=GroupCounts(0, 0, {}, 0), tokens_generated=13, tokens_trained=0, active_rewards=(),
            measured={"generate": {"rows": {"read": 2}, "wanted": 4, **account}},
        )
    )  # fmt: skip
    length, form = generate_sections(read_run(folder.path, 6))
    assert "2 of 4 texts, to 2 requests" in length.note
    assert length.rows[:3] == [
        ("all", "words", "1", "0", "1", "2"),
        ("all", "tokens", "6", "4", "6", "8"),
        ("all", "tokens of plans", "3", "3", "3", "3"),
    ]
    assert form.rows == [
        ("all", "2", "50.0%", "1", "50.0% of 2", "0.000", "1", "1", "0", "0"),
        ("en", "1", "100.0%", "0", "100.0% of 1", "0.000", "1", "0", "0", "0"),
        ("zh", "1", "0.0%", "1", "0.0% of 1", "0.000", "0", "1", "0", "0"),
    ]
    page = write_report(folder.path).read_text(encoding="utf-8")
    assert "Write &lt;b&gt;two&lt;/b&gt; words." in page and "Snow &amp; ice" in page
    assert "Cold things." in page and "3 tokens" in page
    assert "no answer segment: this is all that was written" in page and "雪雪雪雪" in page
    assert "Accounting of groups" not in page
