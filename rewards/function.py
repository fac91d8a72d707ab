"""A user's own function as a reward."""

import asyncio
import contextlib
import importlib
import inspect
import math
import numbers
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lwz_ray.concurrency import together
from lwz_ray.config import FunctionRewardConfig
from lwz_ray.errors import InfrastructureError, RewardFailure, UserError
from lwz_ray.records import Prompt

_FORM = "needs the form package.module:name or package.module.name"
_SIGNATURE = "needs the form `def f(prompt: str, answer: str) -> float`, with `record` as an optional keyword"


def load_function(path: str) -> Callable[..., Any]:
    """Import a function by its dotted path: `package.module:name` (also `:Class.name`) or `package.module.name`.

    Raises UserError where there is no such module or name, the import fails, or it cannot be called as
    `f(prompt, answer)`.
    """
    shown = f"rewards.function.path={path}"
    module_name, colon, name = path.partition(":")
    if not colon:
        module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise UserError(f"{shown}: {_FORM}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        said = " ".join(str(error).split()) or "no message"
        raise UserError(
            f"{shown}: importing {module_name} failed: {type(error).__name__}: {said}; correct the path, or start the "
            "run where Python finds the module (the current folder, PYTHONPATH, an installed package)"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{shown}: {module_name} has no {name}; correct the name")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{shown}: is a {type(found).__name__}, no function; {_SIGNATURE}")
    _takes_record(found, shown)
    return found


def check_function(path: str) -> None:
    """Import the function and look at its signature, so that a mistake shows before anything else is started.

    Raises UserError as `load_function` does.
    """
    load_function(path)


def _takes_record(function: Callable[..., Any], shown: str) -> bool:
    """Return whether the function asks for `record`; raises UserError where f(prompt, answer) is no way to call it."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown}: its signature cannot be read ({error}); wrap it in a def; {_SIGNATURE}") from error
    record = signature.parameters.get("record")
    wanted = record is not None and record.kind in (record.KEYWORD_ONLY, record.POSITIONAL_OR_KEYWORD)
    try:
        signature.bind("", "", **({"record": None} if wanted else {}))
    except TypeError as error:
        raise UserError(f"{shown}: its signature is {signature}: {error}; {_SIGNATURE}") from error
    return wanted


class FunctionScorer:
    """Scores answers with a user's function, sync or async; implements `AnswerScorer`.

    A function that also takes the keyword `record` gets the `Prompt` with its id, language, range and reference. Sync
    functions run in threads of their own, `rewards.function.concurrency` at a time, and must bear that. A thread cannot
    be stopped: one that its caller gave up on keeps its place until it ends, and does not keep the process alive.

    What the function raises becomes a failure of that answer. An OSError (files, connections, timeouts) and an
    InfrastructureError are blamed on the infrastructure; everything else on the data, a text that the function has no
    score for; so is a result that is no finite number. A UserError is passed on and ends the run.

    >>> scorer = FunctionScorer(FunctionRewardConfig(path="my_rewards:politeness", concurrency=8))
    >>> await scorer.score(prompt, ["Dear Sir, ..."])
    [0.5]
    """

    def __init__(self, config: FunctionRewardConfig) -> None:
        """Import the function; raises UserError as `load_function` does."""
        if config.path is None:
            raise UserError("rewards.function.path=null: name a function")
        self._function = load_function(config.path)
        self._path = config.path
        self._record = _takes_record(self._function, f"rewards.function.path={config.path}")
        # An object with `async def __call__` is as async as an `async def`.
        call = getattr(self._function, "__call__", None)  # noqa: B004
        self._is_async = inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(call)
        self._slots = asyncio.Semaphore(config.concurrency)
        self.scope: Literal["sample", "group"] = "sample"

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float | RewardFailure]:
        """Return one value an answer, in order; where there is none, why."""
        return await together([self._score_one(prompt, answer) for answer in answers])

    async def close(self) -> None:
        """Hold nothing: a thread that still runs ends with its function or with the process."""

    async def _score_one(self, prompt: Prompt, answer: str) -> float | RewardFailure:
        record = {"record": prompt} if self._record else {}
        try:
            if self._is_async:
                async with self._slots:
                    value = await self._function(prompt.text, answer, **record)
            else:
                value = await self._in_thread(lambda: self._function(prompt.text, answer, **record))
        except UserError:
            raise
        except Exception as error:  # the user's own code
            blame = "infrastructure" if isinstance(error, OSError | InfrastructureError) else "data"
            said = " ".join(str(error).split())[:200] or "no message"
            return self._failure(f"raised {type(error).__name__}: {said}", blame)
        return self._number(value)

    def _number(self, value: object) -> float | RewardFailure:
        """Take numbers of Python and NumPy, and True and False as 1 and 0."""
        if not isinstance(value, numbers.Real):
            return self._failure(f"returned {type(value).__name__}, no number", "data")
        number = float(value)
        return number if math.isfinite(number) else self._failure(f"returned {number}, no finite number", "data")

    def _failure(self, what: str, blame: Literal["data", "infrastructure"]) -> RewardFailure:
        return RewardFailure("function", f"{self._path} {what}", blame)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a call in a daemon thread; the slot is free again when the thread ends, not when the caller gives up.

        The threads of an executor would keep the process from ending for as long as one of them runs.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Any, Exception | None]] = loop.create_future()

        def finish(value: Any, error: Exception | None) -> None:
            self._slots.release()
            if not done.done():
                done.set_result((value, error))

        def work() -> None:
            value, error = None, None
            try:
                value = call()
            except Exception as raised:
                error = raised
            except BaseException as raised:  # an exit in a thread ends nothing, and would leave the caller waiting
                error = RuntimeError(f"{type(raised).__name__}: {raised}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, value, error)

        await self._slots.acquire()
        try:
            threading.Thread(target=work, name="reward-function", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._slots.release()
            raise
        value, error = await done
        if error is not None:
            raise error
        return value
