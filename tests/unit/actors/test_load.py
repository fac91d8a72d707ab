"""What is kept of an engine's reports."""

from actors.load import EngineCounts


def test_preemptions_of_a_cleared_cache_do_not_count() -> None:
    counts = EngineCounts()
    counts.preempted(2)
    counts.num_cleared = 4
    counts.preempted(3)
    assert (counts.num_preemptions, counts.num_cleared) == (2, 1)
    counts.preempted(3)
    assert (counts.num_preemptions, counts.num_cleared) == (4, 0)
