"""How old a group may be when it is trained, and why waiting for that never waits for nothing.

**Staleness** of a token is the policy version being trained minus the version that sampled it. Staleness of a group is
that of its oldest token, measured when the group is taken for training. `max_staleness` (K) bounds it.

**Capacity.** With G = `groups_per_step`, and `rounds` the training steps whose weights every engine serves,

    admitted − dropped <= (rounds + 1 + K) · G

**Start.** A group counts from the version of its first token. While it is being made that version is not known yet; it
is at least what every engine served when the group was admitted, and this lower bound is used.

**The condition for a batch** (`on_stale=wait`). Before the batch of version V let n(v) be the number of groups in
flight that started at v or earlier. Later batches can hold them in time if for every v >= V − K

    n(v) − (those of them in the batch) <= (v − (V − K)) · G                                                   (1)

For v = V − K this says that all groups which would be too old for version V + 1 are in the batch. docs/architecture.md
proves that a batch of the oldest groups always satisfies (1), so waiting for them ends.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from lwz_ray.records import Group

if TYPE_CHECKING:
    from lwz_ray.config import Config


def staleness_of(group: Group, policy_version: int) -> int:
    """Return the age of the group's oldest token at the version being trained."""
    return policy_version - group.policy_version_min


def capacity(rounds: int, kept: int, groups_per_step: int, max_staleness: int) -> int:
    """Return how many groups may be admitted now. kept: groups admitted so far and not dropped."""
    return max(0, (rounds + 1 + max_staleness) * groups_per_step - kept)


def overlaps_load(max_staleness: int) -> bool:
    """Tell whether the next batch may be trained while engines load weights; synchronous training waits."""
    return max_staleness > 0


def must_train(
    starts: Mapping[int, int], policy_version: int, groups_per_step: int, max_staleness: int
) -> list[tuple[int, int]]:
    """Return (v, count) pairs, v rising: the batch must hold `count` groups that started at v or earlier, by (1).

    starts: group in flight -> version it started at, or the lower bound.
    """
    needs = []
    oldest = policy_version - max_staleness
    for version in sorted({max(oldest, start) for start in starts.values()}):
        started = sum(start <= version for start in starts.values())
        count = started - (version - oldest) * groups_per_step
        if count > 0:
            needs.append((version, count))
    return needs


def choose_batch(
    starts: Mapping[int, int], ready: Collection[int], policy_version: int, groups_per_step: int, max_staleness: int
) -> list[int] | None:
    """Return the ready groups to train on, lowest numbers first as far as (1) allows; None: wait for more.

    ready: those of `starts` that are made.
    """
    batch: set[int] = set()
    for version, count in must_train(starts, policy_version, groups_per_step, max_staleness):
        missing = count - sum(starts[i] <= version for i in batch)
        found = sorted(i for i in ready if starts[i] <= version and i not in batch)[: max(0, missing)]
        if len(found) < missing:
            return None
        batch.update(found)
    batch.update(sorted(set(ready) - batch)[: groups_per_step - len(batch)])
    return sorted(batch) if len(batch) == groups_per_step else None


def out_of_reach(
    starts: Mapping[int, int], ready: Collection[int], policy_version: int, groups_per_step: int, max_staleness: int
) -> list[int]:
    """Return the groups that no order of batches can hold in time; those of a checkpoint made with a larger bound.

    Kept are, oldest first and among equals the made ones first, as many as fit.
    """
    oldest, kept, out = policy_version - max_staleness, 0, []
    for group_id in sorted(starts, key=lambda i: (starts[i], i not in ready, i)):
        if kept < (starts[group_id] - oldest + 1) * groups_per_step:
            kept += 1
        else:
            out.append(group_id)
    return sorted(out)


def check_no_deadlock(config: "Config") -> None:
    """Raise ValueError for a config in which something could be waited for that cannot come in time.

    Of groups there are always enough, for every config: when the loop looks for a batch, at least
    min(G · (K + 1 − loading), groups the run still needs) are in flight, loading (0 or 1) only with K >= 1, so at
    least G. Each ends within `actors.request_timeout_s` and its scores' deadlines, or is dropped, and another takes
    its place; drops that no progress stands behind are capped. What is left are limits that contradict each other.
    """
    actors, weights = config.actors, config.weights
    deadline_s = actors.sample_deadline_s
    if deadline_s is not None and deadline_s >= actors.request_timeout_s:
        raise ValueError(
            f"actors.sample_deadline_s={deadline_s:g} is not below actors.request_timeout_s="
            f"{actors.request_timeout_s:g}: a group would be given up before its longest sample is cut and scored; "
            "lower the first or raise the second"
        )
    longest_s = actors.request_timeout_s if deadline_s is None else deadline_s
    if weights.mode == "wait" and longest_s >= weights.timeout_s:
        name = "actors.request_timeout_s" if deadline_s is None else "actors.sample_deadline_s"
        raise ValueError(
            f"weights.mode=wait lets samples in flight end before new weights are loaded, up to {name}={longest_s:g} "
            f"s, but weights.timeout_s={weights.timeout_s:g}: raise it above {longest_s:g}, set a lower "
            "actors.sample_deadline_s, or use weights.mode=keep"
        )
