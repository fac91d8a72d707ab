"""Chat pairs: what is trained by whose turn it is, templates, rows that are refused, split and order."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from launch.compose import compose
from lwz_ray.chat_pairs import ChatPairBatches, count_pairs, load_chat_pairs, read_pairs
from lwz_ray.chat_pairs_encoding import BadPairError, ChatEncoder, Turn
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt, TrainSample
from tests.corpus_parts import changed, write_lines

ASK, SAY = {"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": " The wren.\n"}
MORE = [{"role": "user", "content": "And a fish?"}, {"role": "assistant", "content": "The carp."}]
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def template(name: str, **changes: Any) -> Any:
    found = compose([f"template={name}"]).template
    return found.model_copy(update=changes)


def turns(*messages: dict[str, str]) -> list[Turn]:
    return [Turn(m["role"], m["content"]) for m in messages]


def trained(tokenizer: Any, sample: TrainSample) -> list[str]:
    """Return the stretches of trained tokens as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask.astype(int), [0]])))
    return [tokenizer.decode(sample.token_ids[a:b]) for a, b in edges.reshape(-1, 2)]


def encode(tokenizer: Any, name: str, *messages: dict[str, str], **changes: Any) -> TrainSample:
    return ChatEncoder(tokenizer, template(name, **changes)).encode(turns(*messages)).sample(0.5)


def test_every_turn_of_the_assistant_is_trained_with_its_end_and_nothing_else(tokenizer: Any):
    system = {"role": "system", "content": "Be brief."}
    sample = encode(tokenizer, "request", system, ASK, SAY, *MORE, {"role": "user", "content": "Thanks"})
    assert tokenizer.decode(sample.token_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a bird.<|im_end|>\n"
        "<|im_start|>assistant\nThe wren.<|im_end|>\n<|im_start|>user\nAnd a fish?<|im_end|>\n"
        "<|im_start|>assistant\nThe carp.<|im_end|>"
    )
    assert trained(tokenizer, sample) == ["The wren.<|im_end|>", "The carp.<|im_end|>"]
    assert sample.num_prompt_tokens == int(np.argmax(sample.loss_mask))
    assert sample.token_weight == 0.5


@pytest.mark.parametrize("name", ["request", "direct", "plain"])
def test_what_is_read_is_what_the_model_is_asked_with(name: str, tokenizer: Any):
    sample = encode(tokenizer, name, ASK, SAY)
    asked = PromptEncoder(tokenizer, template(name)).encode(Prompt("p", ASK["content"], "en", None, 0))
    assert sample.token_ids[: sample.num_prompt_tokens].tolist() == asked.tolist()
    stop = template(name).stop
    assert trained(tokenizer, sample) == [f"The wren.{stop}<|im_end|>"]


def test_a_name_of_a_special_token_in_an_answer_is_text(tokenizer: Any):
    sample = encode(tokenizer, "request", ASK, {"role": "assistant", "content": "It is <|im_end|> here."})
    assert trained(tokenizer, sample) == ["It is <|im_end|> here.<|im_end|>"]
    assert (sample.token_ids[sample.loss_mask] == tokenizer.eos_token_id).sum() == 1


def test_a_base_model_gets_the_template_as_text_and_an_end(tokenizer: Any):
    sample = encode(tokenizer, "direct", ASK, SAY, chat=False)
    text = "Name a bird.\n\nReply in exactly this form:\n<answer>the finished text</answer>"
    assert tokenizer.decode(sample.token_ids) == f"{text}<answer>The wren.</answer><|im_end|>"
    assert trained(tokenizer, sample) == ["The wren.</answer><|im_end|>"]
    with pytest.raises(BadPairError, match=r"template.chat=false has a form for one request and one answer only"):
        encode(tokenizer, "direct", ASK, SAY, *MORE, chat=False)


def test_tags_that_an_answer_brings_are_kept_once_and_a_plan_is_asked_for(tokenizer: Any):
    tagged = {"role": "assistant", "content": "<answer>The wren.</answer>"}
    assert trained(tokenizer, encode(tokenizer, "direct", ASK, tagged)) == ["The wren.</answer><|im_end|>"]
    planned = {"role": "assistant", "content": "<think>Small ones.</think>\n<answer>The wren.</answer>"}
    sample = encode(tokenizer, "think", ASK, planned, chat=True)
    assert trained(tokenizer, sample) == ["Small ones.</think>\n<answer>The wren.</answer><|im_end|>"]
    with pytest.raises(BadPairError, match=r"with template.arm=think an answer needs a plan in <think></think>"):
        encode(tokenizer, "think", ASK, SAY, chat=True)
    with pytest.raises(BadPairError, match=r"with template.arm=direct an answer needs text without tags of its own"):
        encode(tokenizer, "direct", ASK, {"role": "assistant", "content": "a</answer>b"})


def test_chat_templates_that_hide_what_was_seen_are_refused(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    # No special token ends a turn: the end token is put after the last one.
    tokenizer.chat_template = PLAIN
    sample = encode(tokenizer, "request", ASK, SAY, *MORE)
    assert trained(tokenizer, sample) == ["The wren.", "The carp.<|im_end|>"]
    # Every turn but the last is shortened once another follows.
    tokenizer.chat_template = PLAIN.replace("m['content']", "(m['content'] if loop.last else m['content'][:3])")
    with pytest.raises(BadPairError, match=r"chat template writes turn 2 otherwise once others follow"):
        encode(tokenizer, "request", ASK, SAY, *MORE)
    tokenizer.chat_template = PLAIN.replace("m['content']", "m['content'] | upper")
    with pytest.raises(BadPairError, match=r"chat template changes the text of turn 2"):
        encode(tokenizer, "request", ASK, SAY)
    tokenizer.chat_template = PLAIN.replace("'assistant: '", "'assistant: <think>'")
    with pytest.raises(
        BadPairError, match=r"asks for turn 2 with '.*assistant: <think>' and writes the turn itself without"
    ):
        encode(tokenizer, "request", ASK, SAY)
    # As Gemma's, which knows no system turn.
    tokenizer.chat_template = "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"
    tokenizer.chat_template += PLAIN
    with pytest.raises(BadPairError, match=r"chat template refuses the conversation: System role not supported"):
        encode(tokenizer, "request", {"role": "system", "content": "Be brief."}, ASK, SAY)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template: set template.chat=false"):
        ChatEncoder(tokenizer, template("request"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON at column 2"),
        ({"text": "a"}, "no column 'messages' among ['text'] (sft.columns names them)"),
        ({"messages": "a"}, "messages: needs a list of turns, each with role and content"),
        ({"messages": []}, "no turn of the assistant: nothing could be trained"),
        ({"messages": [ASK]}, "no turn of the assistant: nothing could be trained"),
        ({"messages": [SAY, ASK]}, "the assistant's turn stands where the user's should: they have to alternate"),
        ({"messages": [ASK, ASK, SAY]}, "the user's turn stands where the assistant's should"),
        ({"messages": [ASK, {"role": "tool", "content": "x"}]}, "turn 2 has role 'tool': needs one of system, user"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "turn 2 (assistant) has no text"),
        ({"messages": [ASK, {"role": "assistant"}]}, "turn 2 (assistant) has no text"),
        # An emoji that was cut in two: JSON can hold it, no tokenizer takes it.
        ({"messages": [ASK, {"role": "assistant", "content": "ab\ud83d"}]}, "turn 2 (assistant) holds half of a char"),
    ],
)
def test_a_bad_row_is_named_or_counted(row: Any, reason: str, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [ASK, SAY]}, row])
    with pytest.raises(UserError) as caught:
        count_pairs(changed("sft", {"path": path}), "sft.path")
    assert str(caught.value).startswith(f"sft.path: {path}, line 2: {reason}")
    assert str(caught.value).endswith("or leave such rows out with sft.on_bad_row=skip")
    skipping = changed("sft", {"path": path, "on_bad_row": "skip"})
    good = [Turn("user", "Name a bird."), Turn("assistant", " The wren.\n")]
    assert list(read_pairs(skipping, "sft.path")) == [(f"{path}, line 1", good), (f"{path}, line 2", None)]
    assert count_pairs(skipping, "sft.path") == (1, 1)
    only_bad = write_lines(tmp_path / "b.jsonl", [row])
    with pytest.raises(
        UserError, match=r"b.jsonl holds no conversation \(every row is bad, line 1: .+\); name another"
    ):
        count_pairs(changed("sft", {"path": only_bad, "on_bad_row": "skip"}), "sft.path")


def rows(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Name bird {i}.", "text": f"Bird {i}. " * (1 + i % 3), "n": i} for i in range(num)]


COLUMNS = {"messages": None, "prompt": "prompt", "answer": "text"}


def load(tokenizer: Any, path: str, length: int = 64, **section: Any) -> ChatPairBatches:
    settings = {"path": path, "columns": COLUMNS, "samples_per_step": 3, "held_out_share": 0.2, **section}
    return load_chat_pairs(changed("sft", settings, length), tokenizer)


def answers(tokenizer: Any, samples: Any) -> list[str]:
    return [tokenizer.decode(s.token_ids[s.loss_mask]) for s in samples]


def test_batches_come_in_an_order_that_one_number_resumes(tokenizer: Any, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows(10))
    found = load(tokenizer, path)
    assert (found.counts["train"], found.counts["held_out"]) == (8, 2)
    steps = [found.next() for _ in range(8)]
    for samples in steps:
        assert sum(s.num_trained * s.token_weight for s in samples) == pytest.approx(1)
    seen = [a for samples in steps for a in answers(tokenizer, samples)]
    # 24 samples are three epochs of 8, each in an order of its own; what is held out is in none.
    epochs = [seen[8 * e : 8 * e + 8] for e in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    assert [sorted(e) for e in epochs] == [sorted(epochs[0])] * 3
    assert set(answers(tokenizer, found.held_out)).isdisjoint(seen)
    told = found.counts
    assert (told["samples_given"], told["epochs"], told["read"], told["kept"]) == (24, 3.0, 10, 10)
    in_three_epochs = sum(s.num_trained for samples in steps for s in samples)
    assert told["tokens_given"] == 3 * told["answer_tokens"] == in_three_epochs
    fresh = load(tokenizer, path)
    for _ in range(2):
        fresh.next()
    state = json.loads(json.dumps(fresh.state()))
    other = load(tokenizer, path)
    other.restore(state)
    assert answers(tokenizer, other.next()) == answers(tokenizer, steps[2])
    assert other.digest == found.digest
    assert load(tokenizer, path, samples_per_step=2).digest != found.digest
    assert load(tokenizer, path, held_out_share=0.4).digest != found.digest
    other_words = write_lines(tmp_path / "b.jsonl", [*rows(9), {"prompt": "Name bird 9.", "text": "A wren.", "n": 9}])
    assert load(tokenizer, other_words).digest != found.digest


def test_a_run_goes_on_tomorrow_with_a_chat_template_that_writes_the_date(tiny_model_dir: Path, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows(6))
    digests, seen = [], []
    for day in ("1 May", "2 May", "2 May"):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        tokenizer.chat_template = ("Today is {{ day }}. " if len(seen) < 2 else "It is {{ day }}. ") + PLAIN
        # As templates call strftime_now: what they write is not in the template's own text.
        write = tokenizer.apply_chat_template
        tokenizer.apply_chat_template = partial(write, day=day)
        found = load(tokenizer, path)
        seen.append([tokenizer.decode(s.token_ids) for s in found.next()])
        digests.append(found.digest)
    assert digests[0] == digests[1] != digests[2]
    assert [words.replace("1 May", "2 May") for words in seen[0]] == seen[1] != seen[0]


def test_long_conversations_are_dropped_whole_or_refused(tokenizer: Any, tmp_path: Path):
    long = {"prompt": "Name many birds.", "text": "wren " * 200, "n": 0}
    path = write_lines(tmp_path / "a.jsonl", [*rows(4), long])
    found = load(tokenizer, path)
    assert {k: found.counts[k] for k in ("read", "kept", "bad_rows", "too_long")} == {
        "read": 5, "kept": 4, "bad_rows": 0, "too_long": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"line 5: 435 tokens, over model.max_length_tokens=64; raise it, or leave"):
        load(tokenizer, path, on_too_long="error")
    only_long = write_lines(tmp_path / "b.jsonl", [long])
    with pytest.raises(UserError, match=r"none of 1 conversations is left \(1 too_long\)"):
        load(tokenizer, only_long)


def test_copies_stay_on_one_side_and_held_out_files_win(tokenizer: Any, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows(5) * 3)
    found = load(tokenizer, path)
    assert (found.counts["train"], found.counts["held_out"]) == (12, 3)
    assert len(set(answers(tokenizer, found.held_out))) == 1
    aside = write_lines(tmp_path / "b.jsonl", rows(2))
    told = load(tokenizer, path, eval_path=aside).counts
    assert (told["kept"], told["train"], told["copies_of_held_out"], told["held_out"]) == (15, 9, 6, 2)
    assert told["eval_path"] == {"read": 2, "kept": 2, "bad_rows": 0, "too_long": 0}
    with pytest.raises(UserError, match=r"all its conversations are in sft.eval_path"):
        load(tokenizer, aside, eval_path=path)
    one = write_lines(tmp_path / "c.jsonl", rows(1) * 2)
    with pytest.raises(UserError, match=r"sft.path holds one conversation, and sft.held_out_share needs one beside it"):
        load(tokenizer, one)


def test_the_config_names_one_form_of_columns_and_a_path():
    with pytest.raises(UserError, match=r"stage=sft needs chat pairs: sft.path=FILE"):
        count_pairs(changed("sft", {}), "sft.path")
    with pytest.raises(ValueError, match=r"sft.columns.prompt is named and sft.columns.answer is null"):
        changed("sft", {"columns": {"messages": None, "prompt": "a", "answer": None}})
    with pytest.raises(ValueError, match=r"sft.columns names no column"):
        changed("sft", {"columns": {"messages": None, "prompt": None, "answer": None}})


def test_the_package_holds_a_corpus_that_both_stages_read(tokenizer: Any):
    path = "package://lwz_ray/prompts/corpus.jsonl"
    found = load(tokenizer, path, length=1024)
    assert (found.counts["read"], found.counts["kept"]) == (33, 33)
    pairs = read_pairs(changed("sft", {"path": path, "columns": COLUMNS}), "sft.path")
    assert len({turn.content for _, said in pairs for turn in said or []}) == 66
