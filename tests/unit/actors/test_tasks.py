"""Seeds of attempts."""

import itertools

from actors.tasks import attempt_seed
from lwz_ray.grouping import group_seed


def test_every_attempt_at_every_sample_draws_with_a_seed_of_its_own() -> None:
    assert [attempt_seed(100, 3, attempt) for attempt in range(3)] == [103, 208277393, 980504120]
    runs_groups_samples_attempts = itertools.product(range(3), range(20), range(16), range(4))
    seeds = [attempt_seed(group_seed(run, 0, group), i, n) for run, group, i, n in runs_groups_samples_attempts]
    assert len(set(seeds)) == len(seeds) == 3 * 20 * 16 * 4
    assert all(0 <= seed < 2**32 for seed in seeds)
