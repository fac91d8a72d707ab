"""The choice of batches against an adversary: he says which groups are ready or lost and which steps are skipped."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lwz_ray.staleness import capacity, choose_batch, out_of_reach


class Rounds:
    """The loop in the fewest words: admits up to capacity, chooses a batch, moves the version on, loads beside it."""

    def __init__(self, groups_per_step: int, max_staleness: int, adversary: random.Random) -> None:
        self.count, self.bound, self.adversary = groups_per_step, max_staleness, adversary
        self.starts: dict[int, int] = {}
        self.ready: set[int] = set()
        self.version = self.served = self.steps = self.rounds = self.admitted = self.kept = 0

    def load(self) -> None:
        """Every engine serves the version being trained."""
        self.rounds, self.served = self.steps, self.version
        self.admit()

    def admit(self) -> None:
        for _ in range(capacity(self.rounds, self.kept, self.count, self.bound)):
            self.starts[self.admitted] = self.served
            self.admitted, self.kept = self.admitted + 1, self.kept + 1

    def lose(self, but: list[int]) -> None:
        """Drop up to one group, and make another in its place."""
        found = sorted(set(self.starts) - set(but))
        if found and self.adversary.random() < 0.3:
            group_id = self.adversary.choice(found)
            del self.starts[group_id]
            self.ready.discard(group_id)
            self.kept -= 1
            self.admit()

    def batch(self, late: float) -> list[int]:
        """Let groups get ready at random, as a last resort all, until there is a batch.

        A group may turn out to have been begun with newer weights than it was admitted with.
        """
        for share in (1 - late, 1.0):
            for group_id in sorted(set(self.starts) - self.ready):
                if self.adversary.random() < share:
                    self.ready.add(group_id)
                    if self.adversary.random() < 0.2:
                        self.starts[group_id] = self.adversary.randint(self.starts[group_id], self.served)
            found = choose_batch(self.starts, self.ready, self.version, self.count, self.bound)
            if found is not None:
                return found
        raise AssertionError(f"version {self.version}: all of {self.starts} are ready and make no batch")

    def train(self, batch: list[int], skipped: bool) -> None:
        for group_id in batch:
            del self.starts[group_id]
            self.ready.remove(group_id)
        self.steps += 1
        self.version += not skipped


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.3, 0.7]),
    st.integers(0, 2**32),
)
def test_whatever_arrives_first_there_is_a_batch_in_bounds(
    groups_per_step: int, max_staleness: int, skips: float, late: float, seed: int
) -> None:
    adversary = random.Random(seed)
    world = Rounds(groups_per_step, max_staleness, adversary)
    loading = False
    for _ in range(20):
        if not loading:
            world.load()
        world.lose([])
        shape = (world.version, groups_per_step, max_staleness)
        assert out_of_reach(world.starts, world.ready, *shape) == []
        batch = world.batch(late)
        assert len(set(batch)) == groups_per_step and set(batch) <= world.ready
        assert all(world.version - world.starts[i] <= max_staleness for i in batch)
        world.lose(batch)
        world.load()
        world.lose(batch)
        skipped = adversary.random() < skips
        world.train(batch, skipped)
        loading = max_staleness > 0 and not skipped and adversary.random() < 0.5
