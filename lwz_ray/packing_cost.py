"""What a packed row costs, so that microbatches and ranks can be balanced by time and not by tokens alone.

A layer's matrices see every token once; its attention sees every query-key pair, and their number grows with the
square of a sample's length.
"""

from collections.abc import Sequence

from lwz_ray.records import TrainSample


def causal_pairs(num_tokens: int) -> int:
    """Return the query-key pairs of causal attention over so many tokens."""
    return num_tokens * (num_tokens + 1) // 2


def family_pairs(samples: Sequence[TrainSample], family: Sequence[int]) -> int:
    """Return the pairs of samples (indices) that share a prompt.

    The prompt attends to itself once, and again with each completion: attention runs over both as one sequence.
    """
    prompt = samples[family[0]].num_prompt_tokens
    longer = [i for i in family if samples[i].num_tokens > prompt]
    return causal_pairs(prompt) + sum(causal_pairs(samples[i].num_tokens) for i in longer)


def family_tokens(samples: Sequence[TrainSample], family: Sequence[int]) -> int:
    """Return the tokens of samples (indices) that share a prompt: the prompt's once, and their completions'."""
    prompt = samples[family[0]].num_prompt_tokens
    return prompt + sum(samples[i].num_tokens - prompt for i in family)


def family_cost(samples: Sequence[TrainSample], family: Sequence[int], attention_cost: float) -> float:
    """Return the cost in tokens: num_tokens + attention_cost * pairs.

    attention_cost: of one pair, in units of a token's other work; a row costs the sum over its families.
    """
    return family_tokens(samples, family) + attention_cost * family_pairs(samples, family)
