"""How long supervised training goes on."""

import pytest

from lwz_ray.errors import UserError
from lwz_ray.token_budget import TokenBudget, check_epochs


@pytest.mark.parametrize(
    ("steps", "max_tokens", "planned", "tokens"), [(10, None, 10, 1000.0), (10, 250, 3, 300.0), (2, 250, 2, 200.0)]
)
def test_steps_or_tokens_end_it_whichever_is_first(steps: int, max_tokens: int | None, planned: int, tokens: float):
    budget = TokenBudget(steps, max_tokens)
    assert (budget.planned_steps(100.0), budget.tokens(100.0)) == (planned, tokens)
    step = 0
    while not budget.reached(step, 100 * step):
        step += 1
    assert step == planned


def test_epochs_are_counted_by_source():
    found = check_epochs(1000, {"a": 0.75, "b": 0.25}, {"a": 300, "b": 500}, 2.5)
    assert found == {"a": 2.5, "b": 0.5}
    with pytest.raises(UserError, match=r"corpus.sources.a: 75.000% of 1,000 tokens are 750, but it holds 300: 2.50"):
        check_epochs(1000, {"a": 0.75, "b": 0.25}, {"a": 300, "b": 500}, 2.4)
