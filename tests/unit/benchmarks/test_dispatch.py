"""The dispatch bench's simulated engine, by hand, and what its batches and tables are made of."""

import asyncio

import pytest

from actors.dispatch import DispatchSettings
from actors.tasks import SampleTask, WorkerRequest
from benchmarks.dispatch import checked, parser, simulate, table
from benchmarks.dispatch_simulation import JumpingLoop, SimulatedEngine, Speed
from benchmarks.dispatch_work import Job, make_jobs, variants

SPEED = Speed(1.0, 0.5, 0.01)


async def write(engine: SimulatedEngine, prompt: tuple[int, ...], num: int) -> list[tuple[int, float]]:
    """Return (sample index, second at which it ended) of `num` samples."""
    steps = asyncio.create_task(engine.run())
    request = WorkerRequest(prompt, tuple(SampleTask(i, i) for i in range(num)))
    loop = asyncio.get_running_loop()
    ended = [(index, loop.time()) async for index, _ in engine.stream(request, 1e6)]
    steps.cancel()
    await asyncio.gather(steps, return_exceptions=True)
    return ended


def test_an_engine_takes_as_long_as_its_steps() -> None:
    """Two prompts of 10 tokens in the first step, 1.2 s; then 2 s a step for both, 1.5 s for the one that is left."""
    prompt = tuple(range(10))
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        engine = SimulatedEngine(SPEED, {prompt: (3, 5)}, 1600, 16, 8)
        assert runner.run(write(engine, prompt, 2)) == [(0, pytest.approx(5.2)), (1, pytest.approx(8.2))]
    assert (engine.num_preemptions, engine.num_generated) == (0, 8)


def test_the_newest_sequence_is_preempted_and_computed_again() -> None:
    """Of four blocks of 4 each prompt takes two. At 8 tokens both need a third: the second one has to go."""
    prompt = (1, 2, 3, 4)
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        engine = SimulatedEngine(SPEED, {prompt: (8, 8)}, 16, 4, 8)
        ended = runner.run(write(engine, prompt, 2))
    assert [index for index, _ in ended] == [0, 1]
    assert (engine.num_preemptions, engine.num_computed_again) == (1, 8)
    # Together: 1.08 for the prompts and 3 · 2 for tokens 2 to 4; the first alone: 4 · 1.5. The second again: 1.08 for 8
    # tokens, which also gives it a fifth, and 3 · 1.5.
    assert [second for _, second in ended] == [pytest.approx(13.08), pytest.approx(18.66)]


def test_speed_is_fitted_to_what_was_measured() -> None:
    speed = Speed.fitted([(1, 1.5), (4, 3.0), (8, 5.0)], [(100, 2.0), (200, 3.0)])
    assert (speed.fixed, speed.per_sequence) == (pytest.approx(1.0), pytest.approx(0.5))
    assert speed.per_prefill_token == pytest.approx(0.01)
    assert speed.step_s(2, 100) == pytest.approx(3.0)


def test_batches_are_the_same_for_every_way_to_dispatch() -> None:
    jobs = make_jobs(20, 3, (20, 400), 300, seed=4)
    assert jobs == make_jobs(20, 3, (20, 400), 300, seed=4) != make_jobs(20, 3, (20, 400), 300, seed=5)
    assert all(20 <= job.requested_words <= 400 and 1 <= n <= 300 for job in jobs for n in job.lengths)
    ways = variants(16, 0.9)
    assert len(ways) == len(set(ways.values())) == 8
    assert next(iter(ways.values())) == DispatchSettings("first_come", "round_robin", "fixed", 0.9, 16)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--batches 0", "--batches 0: needs 1 or more"),
        ("--words 400 20", "--words 400 20: needs two numbers above 0, the smaller one first"),
        ("--model nowhere", "--model nowhere: there is no such folder"),
        ("--speed nowhere.json", "--speed nowhere.json: there is no such file; run without --speed first"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        checked(arguments.split())
    assert capsys.readouterr().err.splitlines()[-1] == f"benchmarks.dispatch: error: {line}"


def test_a_batch_through_the_pool_and_its_table() -> None:
    """Four samples of 8 tokens, two an engine at once: a step of 1.02 s and seven of 2 s, and the same again."""
    jobs = [Job(10, (8, 8), (1,)), Job(10, (8, 8), (2,)), Job(10, (8, 8), (3,)), Job(10, (8, 8), (4,))]
    options = parser().parse_args(["--max-num-seqs", "2", "--cache-tokens", "1600"])
    options.block_tokens = 16
    found = {}
    for name, settings in list(variants(2, 0.9).items())[:2]:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            found[name] = [runner.run(simulate(jobs, SPEED, options, settings))]
    first = found["first come, round robin, fixed"][0]
    assert first == {"makespan_s": pytest.approx(30.04), "idle_s": 0.0, "group_s": pytest.approx(22.53),
                     "preemptions": 0.0, "again": 0.0}  # fmt: skip
    assert table(found).splitlines()[2] == "| first come, round robin, fixed | 30.0 | 1.00 | 0.0 | 22.5 | 0 | 0 |"
