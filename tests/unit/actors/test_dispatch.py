"""The numbers behind dispatch: expected lengths, the cache's expected peak, and the budget that answers preemptions."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dispatch import DispatchSettings, EngineState, expected_peak
from actors.lengths import LengthEstimate
from actors.pending import PendingSample
from tests.loop_parts import make_config
from tests.pool_parts import load


def sample(expected: float, sent_at: float = 0.0, num_prompt_tokens: int = 0, max_tokens: float = 1e6) -> PendingSample:
    return PendingSample(0, num_prompt_tokens, max_tokens, expected, sent_at=sent_at)


def test_peak_of_samples_that_grow_alike() -> None:
    # Now 150; after 50 tokens 150 + 60 = 210; the second one alone ends at 210, too.
    assert expected_peak([(100, 50), (10, 200), (40, 0)]) == 210
    # After 20 tokens 120 + 30 + 60 = 210, after 30 there are 130 + 70 = 200, at the end 150.
    assert expected_peak([(100, 50), (10, 20), (40, 30)]) == 210
    assert expected_peak([]) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_peak_is_that_of_a_simulation(footprints: list[tuple[int, int]]) -> None:
    uses = [sum(size + t for size, remaining in footprints if remaining >= t) for t in range(51)]
    assert expected_peak(footprints) == max(uses)


def test_lengths_follow_what_is_written_for_like_requests() -> None:
    lengths = LengthEstimate()
    assert lengths.expect(400, None) == 600  # 1.5 tokens a word before anything is known
    assert lengths.expect(400, 500) == 500
    assert (lengths.expect(0, 300), lengths.expect(0, None)) == (300, 1024)
    for num_tokens in (100, 200):
        lengths.saw(400, num_tokens)
    assert lengths.expect(500, None) == 150  # 256 to 511 words share a mean
    assert lengths.expect(600, None) == 900
    for _ in range(2000):
        lengths.saw(400, 1000)
    assert lengths.expect(400, None) == pytest.approx(1000, abs=1)


def test_what_is_admitted_fits_at_its_peak() -> None:
    state = EngineState(DispatchSettings(cache_target=0.3, max_num_seqs=8))
    more = [sample(100) for _ in range(8)]
    assert state.num_admitted([], more, 0.0) == 8  # nothing is known of the cache yet
    state.observe(load(), [], 0.0)
    assert state.num_admitted([], more, 0.0) == 5  # five times 60, of the 100 to come, are 300 tokens
    assert state.num_admitted([sample(100)] * 3, more, 0.0) == 2
    assert state.num_admitted([sample(100)] * 8, more, 0.0) == 0
    assert state.num_admitted([], [sample(9000)], 0.0) == 1
    fixed = EngineState(DispatchSettings(concurrency="fixed", max_num_seqs=3))
    fixed.observe(load(cache_usage=1.0), [], 0.0)
    assert fixed.num_admitted([sample(9000)], more, 0.0) == 2


def test_the_pace_of_the_engine_tells_how_far_its_samples_are() -> None:
    state = EngineState(DispatchSettings(cache_target=1.0))
    running = [sample(100), sample(100)]
    state.observe(load(num_running=2), running, 0.0)
    state.observe(load(num_running=2, num_generated_tokens=160), running, 4.0)  # 20 tokens a second each
    # Both hold 80 and have 20 to go: after 20 more they and a new one hold 220, alone it then grows to 900.
    assert state.free_tokens(running, sample(900), 4.0) == 1000 - 200
    assert state.num_admitted(running, [sample(1666)], 4.0) == 1  # 0.6 of them are 1,000
    assert state.num_admitted(running, [sample(1668)], 4.0) == 0
    assert state.free_tokens([sample(100, max_tokens=90)], sample(1), 60.0) == 1000 - 90
    assert state.free_tokens([sample(100)], sample(1), 60.0) == 1000 - 1.25 * 1200


def test_what_the_engine_holds_beyond_what_is_known_is_not_given_away() -> None:
    state, more = EngineState(DispatchSettings(cache_target=1.0, max_num_seqs=64)), [sample(100) for _ in range(9)]
    state.observe(load(cache_usage=0.7), [], 0.0)
    assert state.num_admitted([sample(10)], more, 0.0) == 5
    assert state.free_tokens([], sample(1), 0.0) == pytest.approx(300)
    # Two samples that have written nothing hold 100 tokens: each takes 50 beyond its own, and so will the next.
    state.observe(load(cache_usage=0.1), [sample(100)] * 2, 1.0)
    assert state.num_admitted([sample(100)] * 2, more, 1.0) == 7  # nine times 50 + 60 of 1,000
    assert state.free_tokens([sample(100)] * 2, sample(1), 1.0) == pytest.approx(700)


def test_preemptions_lower_the_budget_once_and_quiet_heartbeats_raise_it() -> None:
    state = EngineState(DispatchSettings(cache_target=0.9, max_num_seqs=64))
    running, more = [sample(10)], [sample(50) for _ in range(40)]
    clock = itertools.count()

    def heartbeat(preemptions: int) -> int:
        return state.observe(load(num_preemptions=preemptions), running, float(next(clock)))

    assert heartbeat(0) == 0
    assert state.num_admitted(running, more, 1.0) == 30
    state.sent()
    assert (heartbeat(3), state.budget) == (3, pytest.approx(0.72))
    assert state.num_admitted(running, more, 1.0) == 0  # while preemptions are fresh
    assert state.num_admitted([], more, 1.0) == 1
    assert (heartbeat(5), state.budget) == (2, pytest.approx(0.72))  # nothing was sent under it: not its fault
    heartbeat(5)
    assert (state.num_admitted(running, more, 1.0), state.budget) == (24, pytest.approx(0.72))
    heartbeat(5)
    assert state.budget == pytest.approx(0.74)
    heartbeat(5)
    assert state.budget == pytest.approx(0.74)  # the budget held nothing back in between
    for _ in range(20):
        state.num_admitted(running, more, 1.0)
        heartbeat(5)
    assert state.budget == 0.9
    for preemptions in range(6, 30):
        state.sent()
        heartbeat(preemptions)
    assert state.budget == pytest.approx(0.1)


def test_an_engine_whose_cache_is_full_of_waiting_sequences_gets_nothing_more() -> None:
    state = EngineState(DispatchSettings())
    state.observe(load(cache_usage=0.95, num_waiting=2), [], 0.0)
    assert state.num_admitted([sample(1)], [sample(1)], 0.0) == 0
    state.observe(load(cache_usage=0.5, num_waiting=2), [], 1.0)
    assert state.num_admitted([sample(1)], [sample(1)], 1.0) == 1


def test_settings_come_from_the_config(tmp_path: Path) -> None:
    config = make_config(tmp_path, sampling={"max_tokens": 77}, actors={"max_num_seqs": 5, "cache_target": 0.4})
    found = DispatchSettings.of(config)
    assert (found.max_tokens, found.max_num_seqs, found.cache_target) == (77, 5, 0.4)
    assert (found.order, found.routing, found.concurrency) == ("longest_first", "most_free_cache", "cache")
    assert (found.sample_deadline_s, found.max_sample_attempts) == (None, 5)
