"""Answers to mistakes inside sections whose names the user chooses."""

import pytest

from launch.compose import compose
from lwz_ray.errors import UserError


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (
            "corpus.sources.books.pathh=x",
            "unknown key 'corpus.sources.books.pathh': did you mean 'corpus.sources.books.path'? "
            "(it has path, split, column, weight)",
        ),
        (
            "corpus.sources={books: {path: x, wieght: 2}}",
            "unknown key 'corpus.sources.books.wieght': did you mean 'corpus.sources.books.weight'? "
            "(it has path, split, column, weight)",
        ),
        (
            "corpus.sourcs.books.path=x",
            "unknown key 'corpus.sourcs.books.path': did you mean 'corpus.sources.books.path'?",
        ),
        ("corpus.sources.books.weight=2", "missing key 'corpus.sources.books.path': needs text"),
        (
            "corpus.sources={books: {path: x, weight: heavy}}",
            "corpus.sources.books.weight='heavy' (str): needs a number > 0",
        ),
        ("corpus.sources.Books.path=x", "corpus.sources: the name 'Books' has to match ^[a-z][a-z0-9_]*$"),
        (
            "corpus.sources.books=x",
            "corpus.sources.books='x' (str): needs a section with the keys path, split, column, weight",
        ),
        (
            "pipeline.stages.first.wrds=[x]",
            "unknown key 'pipeline.stages.first.wrds': did you mean 'pipeline.stages.first.words'? "
            "(it has words, needs)",
        ),
    ],
)
def test_a_key_in_a_named_section_is_answered_with_that_sections_keys(word: str, answer: str):
    with pytest.raises(UserError) as caught:
        compose(["stage=pretrain", word])
    assert str(caught.value) == answer
