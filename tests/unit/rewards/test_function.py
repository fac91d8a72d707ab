"""A user's own function: found, called, and what it may do wrong."""

import asyncio
import threading
from pathlib import Path

import pytest

from lwz_ray.config import FunctionRewardConfig
from lwz_ray.errors import RewardFailure, UserError
from lwz_ray.records import Prompt
from rewards.function import FunctionScorer, check_function, load_function

PROMPT = Prompt("p1", "Write about tea.", "en", (10, 20), 0)
SOURCE = """
import asyncio
import threading
import time

import numpy as np

from lwz_ray.errors import UserError

NUMBER = 3
gate = threading.Event()
running = most = 0
lock = threading.Lock()

def words(prompt, answer):
    return len(answer.split()) / 10

async def words_async(prompt, answer):
    await asyncio.sleep(0)
    return len(answer.split()) / 10

def with_record(prompt: str, answer: str, *, record) -> float:
    return record.length_range[0] + len(prompt)

def with_anything(prompt, answer, **more):
    return len(more)

class Scorers:
    @staticmethod
    def fixed(prompt, answer):
        return 2

class Object:
    async def __call__(self, prompt, answer):
        return 4.0

an_object = Object()

def one(answer): ...
def three(prompt, answer, other): ...

def misbehave(prompt, answer):
    if answer == "numpy": return np.float32(0.5)
    if answer == "true": return True
    if answer == "text": return "0.5"
    if answer == "none": return None
    if answer == "nan": return float("nan")
    if answer == "value": raise ValueError("two\\nlines")
    if answer == "timeout": raise TimeoutError("the service is away")
    if answer == "stop": raise StopIteration
    if answer == "exit": raise SystemExit(3)
    if answer == "user": raise UserError("my service needs a key")
    return 1.0

def counting(prompt, answer):
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(0.05)
    with lock:
        running -= 1
    return 1.0

def waits(prompt, answer):
    if answer == "waits":
        gate.wait(60)
    return 1.0
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a user's modules where Python finds them; return the name of the sound one, new for each test."""
    name = f"user_rewards_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "user_broken.py").write_text("import no_such_thing_at_all\n", encoding="utf-8")
    (tmp_path / "user_exits.py").write_text("raise SystemExit(2)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def scorer(path: str, concurrency: int = 4) -> FunctionScorer:
    return FunctionScorer(FunctionRewardConfig(path=path, concurrency=concurrency))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (":words", [0.2, 0.0]),
        (".words", [0.2, 0.0]),
        (":words_async", [0.2, 0.0]),
        (":with_record", [26.0, 26.0]),
        (":with_anything", [0.0, 0.0]),
        (":Scorers.fixed", [2.0, 2.0]),
        (":an_object", [4.0, 4.0]),
    ],
)
async def test_functions_of_every_kind_score(module: str, name: str, values: list[float]) -> None:
    mine = scorer(module + name)
    assert mine.scope == "sample"
    assert await mine.score(PROMPT, ["two words", ""]) == values
    await mine.close()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module:f", "importing no_such_module failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("user_broken.f", "importing user_broken failed: ModuleNotFoundError: No module named 'no_such_thing_at_all'"),
        ("user_exits.f", "importing user_exits failed: SystemExit: 2; correct the path"),
        ("{module}:nothing", "{module} has no nothing; correct the name"),
        ("{module}:Scorers.nothing", "{module} has no Scorers.nothing; correct the name"),
        ("{module}:NUMBER", "is a int, no function; needs the form `def f(prompt: str, answer: str) -> float`"),
        ("{module}:one", "its signature is (answer): too many positional arguments; needs the form"),
        ("{module}:three", "its signature is (prompt, answer, other): missing a required argument: 'other'"),
        ("words", "needs the form package.module:name or package.module.name"),
        ("{module}:", "needs the form package.module:name"),
        ("my-rewards:f", "needs the form package.module:name"),
    ],
)
def test_a_wrong_path_is_refused_before_the_run(module: str, path: str, says: str) -> None:
    path, says = path.format(module=module), says.format(module=module)
    for check in (load_function, check_function, scorer):
        with pytest.raises(UserError) as caught:
            check(path)
        assert str(caught.value).startswith(f"rewards.function.path={path}: ")
        assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says", "blame"),
    [
        ("text", "returned str, no number", "data"),
        ("none", "returned NoneType, no number", "data"),
        ("nan", "returned nan, no finite number", "data"),
        ("value", "raised ValueError: two lines", "data"),
        ("timeout", "raised TimeoutError: the service is away", "infrastructure"),
        ("stop", "raised RuntimeError: coroutine raised StopIteration", "data"),
        ("exit", "raised RuntimeError: SystemExit: 3", "data"),
    ],
)
async def test_what_a_function_does_wrong_is_a_failure_of_that_answer(
    module: str, answer: str, says: str, blame: str
) -> None:
    path = f"{module}:misbehave"
    found = await scorer(path).score(PROMPT, ["fine", answer, "numpy", "true"])
    assert (found[0], *found[2:]) == (1.0, 0.5, 1.0)
    assert found[1] == RewardFailure("function", f"{path} {says}", blame)  # type: ignore[arg-type]


async def test_a_user_error_of_the_function_ends_the_run(module: str) -> None:
    with pytest.raises(UserError, match="my service needs a key"):
        await scorer(f"{module}:misbehave").score(PROMPT, ["fine", "user"])


async def test_no_more_calls_are_under_way_than_allowed(module: str) -> None:
    import importlib

    assert await scorer(f"{module}:counting", concurrency=3).score(PROMPT, ["a"] * 9) == [1.0] * 9
    assert importlib.import_module(module).most == 3


async def test_a_call_that_was_given_up_keeps_its_place_until_it_ends(module: str) -> None:
    import importlib

    mine = scorer(f"{module}:waits", concurrency=1)
    stuck = asyncio.create_task(mine.score(PROMPT, ["waits"]))
    await asyncio.sleep(0.05)
    threads = [t for t in threading.enumerate() if t.name == "reward-function"]
    assert [t.daemon for t in threads] == [True]
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    after = asyncio.create_task(mine.score(PROMPT, ["next"]))
    await asyncio.sleep(0.05)
    assert not after.done()
    importlib.import_module(module).gate.set()
    assert await asyncio.wait_for(after, 20) == [1.0]
