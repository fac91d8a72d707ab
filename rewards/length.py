"""The length reward of arXiv 2506.18841."""


def l_max_for(high: int, factor: float, cap: int | None = None) -> float:
    """Return L_max, the length at which the reward of a text that is too long reaches 0. In words.

    The paper leaves it open; ours is `factor` times L_upper, at most `cap`, and at least L_upper + 1.
    """
    wanted = factor * high if cap is None else min(factor * high, cap)
    return float(max(high + 1, wanted))


def length_reward(num_words: int, low: int, high: int, l_max: float) -> float:
    """Score a length against the range that was asked for; in [0, 1], all lengths in words.

        r = 1                             where low <= n <= high
          = n / low                       where n < low
          = (l_max - n) / (l_max - high)  where n > high, never below 0

    With `l_max` equal to `high` every text above the range scores 0.
    """
    if not 0 < low <= high <= l_max:
        raise ValueError(f"length_reward: low={low}, high={high}, l_max={l_max:g} need 0 < low <= high <= l_max")
    if num_words < 0:
        raise ValueError(f"length_reward: num_words={num_words} is negative")
    if num_words < low:
        return num_words / low
    if num_words <= high:
        return 1.0
    if num_words >= l_max:
        return 0.0
    return (l_max - num_words) / (l_max - high)
