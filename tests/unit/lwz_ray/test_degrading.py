"""One good text becomes its pairs: which kinds need the model, how paraphrases are made, and what length tells."""

import pytest

from lwz_ray.config_stages import Kind
from lwz_ray.degrading import MODEL_KINDS, degrade, pair_row
from lwz_ray.good_texts import GoodText
from lwz_ray.pair_statistics import length_statistics

KINDS: tuple[Kind, ...] = ("shuffle", "repeat", "paraphrase", "cut", "drift", "mix", "hot")
TEXT = GoodText(
    "p1", "Write about a lighthouse.", 0, "en",
    "The keeper climbed the stairs at dawn. A grey gull sat on the iron rail. Its leg carried a small folded note.",
)  # fmt: skip
OTHER = GoodText("p2", "Write about bread.", 0, "en", "Dough rises slowly. Yeast eats the sugar. Gas is caught in it.")
SAME_PROMPT = GoodText("p1", "Write about a lighthouse.", 1, "en", "Forbidden words. They are forbidden.")


class TurnedWords:
    """Rewrites by turning the order of words round, and goes on with colours."""

    def __init__(self, answer: str | None = "") -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def rewrite(self, sentence: str, language: str, seed: int) -> str | None:
        self.asked.append(sentence)
        return " ".join(sentence.rstrip(".").split()[::-1]) if self.answer == "" else self.answer

    async def go_on(self, text: GoodText, head: str, rest: str, temperature: float, seed: int) -> str:
        assert head + rest == text.text
        assert 1.5 <= temperature <= 2.0
        return " blue green" * 20


async def test_every_kind_makes_one_pair_and_the_chosen_text_stays():
    done = await degrade(TEXT, KINDS, [OTHER, SAME_PROMPT], TurnedWords(), 1, 2.0)
    assert list(done.rejected) == list(KINDS)
    assert done.missing == {}
    assert TEXT.text not in done.rejected.values()
    assert "Forbidden" not in done.rejected["drift"]
    assert "Yeast" in done.rejected["drift"] or "Gas" in done.rejected["drift"]
    assert "blue green blue" in done.rejected["hot"]
    assert done.ways == {"model": 1}
    again = await degrade(TEXT, KINDS[::-1], [OTHER, SAME_PROMPT], TurnedWords(), 1, 2.0)
    assert again.rejected == done.rejected
    assert (await degrade(TEXT, KINDS, [OTHER], TurnedWords(), 2, 2.0)).rejected != done.rejected


async def test_a_copy_from_the_model_is_replaced_by_the_rules():
    writer = TurnedWords(answer=None)
    done = await degrade(TEXT, ["paraphrase"], [], writer, 1, 2.0)
    assert done.ways == {"rules": 1}
    assert len(writer.asked) == 2
    assert len(set(writer.asked)) == 1


async def test_a_kind_that_a_text_does_not_allow_is_missing_with_its_reason():
    short = GoodText("p3", "Say it.", 0, "en", "Rain fell.")
    kinds: list[Kind] = ["shuffle", "repeat", "drift"]
    done = await degrade(short, kinds, [OTHER], None, 1, 2.0)
    assert done.missing == {"shuffle": "unsuited", "repeat": "unsuited", "drift": "unsuited"}
    assert frozenset({"paraphrase", "hot"}) == MODEL_KINDS


def test_a_row_names_its_source_and_counts_words():
    assert pair_row(TEXT, "cut", "The keeper climbed", "heldout") == {
        "prompt": "Write about a lighthouse.", "chosen": TEXT.text, "rejected": "The keeper climbed", "kind": "cut",
        "source": "p1", "sample": 0, "split": "heldout", "words_chosen": 22, "words_rejected": 3,
    }  # fmt: skip


def test_length_statistics_say_what_length_tells():
    rows = [
        {"kind": "cut", "words_chosen": 10, "words_rejected": 5},
        {"kind": "repeat", "words_chosen": 10, "words_rejected": 15},
        {"kind": "repeat", "words_chosen": 10, "words_rejected": 10},
    ]
    found = length_statistics(rows, ["shuffle", "cut", "repeat"], match_words=0.1)
    assert list(found) == ["cut", "repeat", "all"]
    assert found["cut"]["always_shorter_wins"] == 0.0
    assert found["repeat"] == pytest.approx(
        {
            "pairs": 2, "ratio_p10": 1.05, "ratio_median": 1.25, "ratio_p90": 1.45, "rejected_longer": 0.5,
            "rejected_shorter": 0.0, "matched": 0.5, "always_shorter_wins": 0.75,
        }
    )  # fmt: skip
    assert found["all"]["always_shorter_wins"] == 0.5
