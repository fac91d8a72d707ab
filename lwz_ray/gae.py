"""Generalised advantage estimation over the tokens of one answer."""

import numpy as np


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Return advantages and returns, float64 [num_tokens] (arXiv 1506.02438 eq. 16; in PPO, arXiv 1707.06347 eq. 11).

    rewards: of taking each token; values: of the state before each token. The answer ends after its last token, also
    where the token limit ended it: delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the end,
    A_t = delta_t + gamma lam A_{t+1}, returns R_t = A_t + V_t.
    """
    if rewards.shape != values.shape or rewards.ndim != 1:
        raise ValueError(f"gae: rewards {rewards.shape} and values {values.shape} must be equal 1-D")
    after = np.append(values[1:], 0.0).astype(np.float64)
    delta = rewards + gamma * after - values
    advantages = np.empty_like(delta)
    running = 0.0
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + gamma * lam * running
        advantages[t] = running
    return advantages, advantages + values
