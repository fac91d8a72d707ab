"""Policy losses over flat token tensors, one file each. They see tensors and numbers; `POLICY_LOSSES` names them.

Denominators are global and come in as token weights, so a sum over any split into ranks and microbatches is the loss.
"""

from collections.abc import Callable

from lwz_ray.config_algorithm import PolicyLossName
from lwz_ray.policy_losses.cispo import cispo_terms
from lwz_ray.policy_losses.clip import clip_terms
from lwz_ray.policy_losses.gspo import gspo_terms
from lwz_ray.policy_losses.reinforce import reinforce_terms
from lwz_ray.policy_losses.terms import PolicyTerms, TokenColumns

POLICY_LOSSES: dict[PolicyLossName, Callable[[TokenColumns, float, float], PolicyTerms]] = {
    "clip": clip_terms,
    "gspo": gspo_terms,
    "cispo": cispo_terms,
    "reinforce": reinforce_terms,
}
"""Each takes the columns, clip_low and clip_high."""

__all__ = ["POLICY_LOSSES", "PolicyTerms", "TokenColumns"]
