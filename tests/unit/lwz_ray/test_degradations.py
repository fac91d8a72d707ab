"""Each way to spoil a text does what it says, with literal examples in both languages."""

from collections.abc import Callable

import numpy as np
import pytest

from lwz_ray.degradations.copies import CopyPlan, insert_copies, repeat
from lwz_ray.degradations.hot import draw_temperature, join_hot, split_head
from lwz_ray.degradations.inventory import PHRASES, SENTENCES
from lwz_ray.degradations.languages import mix
from lwz_ray.degradations.order import cut, shuffle
from lwz_ray.degradations.passages import ends_closed, split_passages
from lwz_ray.degradations.rewriting import accepts, copied_share, kept_share, rewrite_by_rules, tidy
from lwz_ray.degradations.topic import drift
from lwz_ray.text import count_words

EN = (
    "The keeper climbed the stairs at dawn. A gull sat on the rail.\n\nIts leg carried a folded note. He read it twice "
    "and packed a bag. By noon the island was empty."
)
ZH = "老邮差推着车走过小桥。他的包里只剩最后一封信。\n因为下雨，所以路上没有人。信终于送到了。"
BREAD = "Dough rises. Yeast eats sugar. Gas is caught in it. Wait an hour before you bake."
SEEDS = range(40)


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_text_is_taken_apart_and_nothing_is_lost():
    english, chinese = split_passages(EN), split_passages(ZH)
    assert (len(english), english.gaps) == (5, (" ", "\n\n", " ", " ", ""))
    assert chinese.sentences[2] == "因为下雨，所以路上没有人。"
    assert chinese.gaps == ("", "\n", "", "")
    assert (english.text, chinese.text) == (EN, ZH)
    tricky = 'Dr. A. Hale paid 3.50 dollars. "Too much!" he said. Was it? Yes…'
    assert split_passages(tricky).sentences == (
        "Dr. A. Hale paid 3.50 dollars.", '"Too much!"', "he said.", "Was it?", "Yes…",
    )  # fmt: skip


def test_shuffle_moves_sentences_and_keeps_the_paragraphs():
    assert shuffle(EN, rng()) == (
        "Its leg carried a folded note. By noon the island was empty.\n\nHe read it twice and packed a bag. A gull "
        "sat on the rail. The keeper climbed the stairs at dawn."
    )
    assert shuffle(ZH, rng()) == (
        "因为下雨，所以路上没有人。信终于送到了。\n他的包里只剩最后一封信。老邮差推着车走过小桥。"
    )
    for seed in SEEDS:
        moved = split_passages(shuffle(EN, rng(seed)) or "")
        assert sorted(moved.sentences) == sorted(split_passages(EN).sentences)
        assert sum(a != b for a, b in zip(moved.sentences, split_passages(EN).sentences, strict=True)) >= 3


def test_shuffle_needs_two_different_sentences():
    assert shuffle("Only one sentence here.", rng()) is None
    assert shuffle("The same. The same.", rng()) is None


def test_cut_ends_inside_a_sentence_after_30_to_80_percent():
    assert cut(EN, rng()) == (
        "The keeper climbed the stairs at dawn. A gull sat on the rail.\n\nIts leg carried a folded note. He read it "
        "twice and packed a"
    )
    assert cut(ZH, rng()) == "老邮差推着车走过小桥。他的包里只剩最后一封信。\n因为下雨，所以路上"
    for text in (EN, ZH):
        for seed in SEEDS:
            start = cut(text, rng(seed))
            assert start is not None
            assert text.startswith(start)
            assert not ends_closed(start)
            assert 0.3 <= (count_words(start) + 1) / count_words(text) <= 0.9


def test_repeat_pastes_a_passage_further_down():
    assert repeat(ZH, rng()) == (
        "老邮差推着车走过小桥。他的包里只剩最后一封信。\n因为下雨，所以路上没有人。信终于送到了。"
        "由于下雨，所以路上没有人。信终于送到了。由于下雨，所以路上没有人。信终于送到了。"
    )
    longer = 0
    for seed in SEEDS:
        spoiled = repeat(EN, rng(seed))
        assert spoiled is not None
        longer += count_words(spoiled) > 1.1 * count_words(EN)
        kept = [s for s in split_passages(EN).sentences if s in spoiled]
        assert len(kept) >= 2
    assert 10 <= longer <= 30  # in about half of the texts a copy replaces what stood there


def test_copies_are_added_or_take_the_place_of_as_many_words():
    passages = split_passages("One two three four. Five six. Seven eight nine ten. Eleven twelve.")
    copies = ["A b c d.", "E f."]
    added = insert_copies(passages, CopyPlan((0, 1), 2, same_length=False), copies)
    assert added == "One two three four. Five six. A b c d. E f. Seven eight nine ten. Eleven twelve."
    replaced = insert_copies(passages, CopyPlan((0, 1), 2, same_length=True), copies)
    assert replaced == "One two three four. Five six. A b c d. Eleven twelve."


def test_drift_leaves_the_topic_and_keeps_the_length():
    assert drift(EN, [BREAD], rng()) == (
        "The keeper climbed the stairs at dawn. A gull sat on the rail.\n\nIts leg carried a folded note. Yeast eats "
        "sugar. Gas is caught in it. Wait an hour before you bake."
    )
    assert drift(EN, [], rng()) is None
    chinese = drift(ZH, ["面团慢慢发了起来。酵母吃掉了糖。一个小时以后就可以烤了。"], rng())
    assert chinese is not None
    assert chinese.startswith("老邮差推着车走过小桥。")
    assert "酵母吃掉了糖。" in chinese


@pytest.mark.parametrize("text", [EN, ZH], ids=["en", "zh"])
def test_mix_brings_in_one_other_language(text: str):
    used = set()
    for seed in SEEDS:
        mixed = mix(text, rng(seed))
        assert mixed is not None
        assert mixed != text
        found = {k for k in SENTENCES for piece in (*SENTENCES[k], *PHRASES[k]) if piece in mixed}
        assert len(found) == 1
        assert 0.6 <= count_words(mixed) / count_words(text) <= 1.9
        used |= found
    assert used == ({"en"} if text == ZH else {"zh", "es", "fr", "de", "ru", "it"})


def test_a_continuation_keeps_the_head_and_the_length():
    head, rest = split_head(EN, rng()) or ("", "")
    assert head == "The keeper climbed the stairs at dawn. A gull sat on the rail.\n\nIts leg"
    assert head + rest == EN
    assert split_head("Word", rng()) is None
    joined = join_hot("A gull sat", " on the rail at noon.", " in spoons of seven maps and then it went")
    assert joined == "A gull sat in spoons of seven maps."
    assert join_hot("A gull", " sat on the rail.", " sang. The moon was") == "A gull sang. The moon was."
    assert join_hot("一只海鸥", "停在栏杆上。", "吃了七本旧书和") == "一只海鸥吃了七本旧。"
    assert join_hot("A gull", " sat.", " …") is None
    assert {1.5 <= draw_temperature(2.0, rng(seed)) <= 2.0 for seed in SEEDS} == {True}


def test_a_rewrite_is_neither_a_copy_nor_about_something_else():
    sentence = "A gull sat on the rail of the old lighthouse."
    assert copied_share("A gull sat on the rail.", "A gull sat by the sea.") == 0.25
    assert kept_share("A gull sat on the rail.", "A gull sat by the sea.") == pytest.approx(2 / 3)
    assert accepts(sentence, "On the old lighthouse rail, a gull was sitting.")
    assert not accepts(sentence, "A gull sat on the rail of the old lighthouse.")
    assert not accepts(sentence, "Bread dough rises when yeast eats the sugar in it.")
    assert not accepts(sentence, "A gull.")
    assert not accepts(sentence, "On the old lighthouse rail,\na gull was sitting.")
    assert tidy(' "A gull was there" ') == "A gull was there."


def test_rules_turn_clauses_and_swap_words():
    assert (
        rewrite_by_rules("He packed a small bag because the boat was leaving.", "en", rng())
        == "Again, because the boat was leaving, he packed a tiny bag."
    )
    assert rewrite_by_rules("因为下雨，所以路上没有人。", "zh", rng()) == "简单来说，之所以途中没有人，是因为下雨。"


@pytest.mark.parametrize("spoil", [shuffle, cut, repeat, mix, lambda text, r: drift(text, [BREAD], r)])
def test_the_same_stream_gives_the_same_text_and_others_vary(
    spoil: Callable[[str, np.random.Generator], str | None],
):
    assert spoil(EN, rng(3)) == spoil(EN, rng(3))
    assert len({spoil(EN, rng(seed)) for seed in SEEDS}) >= 3
