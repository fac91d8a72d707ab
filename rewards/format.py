"""The format reward: the arm's structure, less a penalty for repeated content."""

from lwz_ray.config import FormatRewardConfig
from lwz_ray.records import ParsedText


def repetition_penalty(repetition: float, free: float) -> float:
    """Return 0 up to the share of repetition that is `free`, then rise linearly to 1 at full repetition."""
    if not 0 <= repetition <= 1 or not 0 <= free < 1:
        raise ValueError(
            f"repetition_penalty: repetition={repetition:g} is not in [0, 1] or free={free:g} not in [0, 1)"
        )
    return max(0.0, repetition - free) / (1.0 - free)


def format_reward(parsed: ParsedText, repetition: float, config: FormatRewardConfig) -> float:
    """Return structure * (1 - penalty), in [0, 1].

    Structure is 1 for exactly the arm's segments and 0 otherwise, or the share of tags in their place with
    `partial_credit`. The paper asks for both parts and leaves metric and thresholds open: they are ours.
    """
    structure = parsed.segments_found if config.partial_credit else float(parsed.well_formed)
    return structure * (1.0 - repetition_penalty(repetition, config.repetition_free))
