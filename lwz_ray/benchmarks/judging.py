"""A benchmark's questions put to a judge: many at a time, unreadable replies asked again, failures counted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwz_ray.benchmarks.arena_write import matchups
from lwz_ray.benchmarks.questions import CriterionQuestion, MatchQuestion, QualityQuestion, Question
from lwz_ray.benchmarks.records import Benchmark, CriterionVerdict, Game, QualityVerdict
from lwz_ray.chat import ChatFailedError, ChatModel, ChatReply, ChatRequest
from lwz_ray.concurrency import together
from lwz_ray.texts import WrittenText
from lwz_ray.verdicts import MalformedVerdictError

Verdict = QualityVerdict | CriterionVerdict | Game
MAX_ATTEMPTS = 3
"""Draws of a verdict before a question counts as unreadable."""
RETRY_TEMPERATURE = 0.5
"""Of a further draw where the first was made at 0, which would give the same reply again; ours."""
NUM_EXAMPLES = 5
"""Failures that are kept in words."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How the judge is asked."""

    temperature: float
    top_p: float
    max_tokens: int
    """Of a reply."""
    seed: int
    at_once: int
    """Questions in flight."""
    max_attempts: int = MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One question, and the record that its answer makes."""

    question: Question
    place: str
    """What is judged, in words."""
    verdict: Callable[[Any], Verdict]


@dataclass(slots=True)
class Judged:
    """What came of all questions."""

    verdicts: list[Verdict] = field(default_factory=list)
    """In the order of the questions; one without a verdict has none here."""
    num_questions: int = 0
    num_done: int = 0
    num_redrawn: int = 0
    """Draws after a reply that could not be read."""
    failed: Counter[str] = field(default_factory=Counter)
    """Questions without a verdict by reason: `unreadable`, or why no reply came."""
    examples: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the counts as JSON's own types."""
        return {
            "questions": self.num_questions,
            "verdicts": len(self.verdicts),
            "redrawn": self.num_redrawn,
            "failed": dict(sorted(self.failed.items())),
            "examples": list(self.examples),
        }


def judge_tasks(benchmark: Benchmark, texts: Sequence[WrittenText], model: str) -> Iterator[JudgeTask]:
    """Yield every question of a benchmark about a model's texts, in the order of the texts.

    longbench_write: one a text; writingbench: one a text and criterion; arena_write: two a text and baseline.
    """
    if benchmark.name == "arena_write":
        yield from _match_tasks(benchmark, texts, model)
        return
    places = benchmark.positions
    for text in texts:
        request = benchmark.requests[places[text.prompt_id]]
        where, at = f"request {text.prompt_id}, sample {text.sample_index}", (text.prompt_id, text.sample_index)
        if benchmark.name == "longbench_write":
            quality = QualityQuestion(request.text, text.answer)
            yield JudgeTask(quality, where, lambda scores, at=at: QualityVerdict(*at, scores))
            continue
        for criterion in request.criteria:
            question = CriterionQuestion(request.text, text.answer, criterion)
            yield JudgeTask(
                question,
                f"{where}, criterion {criterion.name!r}",
                lambda score, at=at, name=criterion.name: CriterionVerdict(*at, name, score),
            )


def _match_tasks(benchmark: Benchmark, texts: Sequence[WrittenText], model: str) -> Iterator[JudgeTask]:
    for match in matchups(benchmark, texts, model):
        order = "first" if match.model_first else "second"
        where = f"request {match.request.request_id}, sample {match.sample_index}, {order} beside {match.baseline}"

        def game(first_won: float, match=match) -> Game:
            score = first_won if match.model_first else 1.0 - first_won
            return Game(
                match.request.request_id, match.sample_index, match.model, match.baseline, match.model_first, score
            )

        yield JudgeTask(MatchQuestion(match.request.text, match.first, match.second), where, game)


async def judge_texts(
    benchmark: Benchmark,
    texts: Sequence[WrittenText],
    model: str,
    chat: ChatModel,
    settings: JudgeSettings,
    progress: Callable[[Judged], None] = lambda judged: None,
) -> Judged:
    """Ask every question; one that yields no verdict is counted, never scored.

    progress: told after every question. A UserError of the judge ends it: what was answered is where `chat` keeps it.
    """
    tasks = list(judge_tasks(benchmark, texts, model))
    judged = Judged(num_questions=len(tasks))
    found: dict[int, Verdict] = {}
    waiting = iter(enumerate(tasks))

    async def work() -> None:
        for index, task in waiting:  # shared by all: each takes the next that nobody has taken
            value = await _ask(task, chat, settings, judged)
            if value is not None:
                found[index] = task.verdict(value)
            judged.num_done += 1
            progress(judged)

    try:
        await together([work() for _ in range(min(settings.at_once, len(tasks)))])
    finally:  # the account of a judging that was cut short counts its verdicts too
        judged.verdicts = [found[index] for index in sorted(found)]
    return judged


async def _ask(task: JudgeTask, chat: ChatModel, settings: JudgeSettings, judged: Judged) -> Any | None:
    """Return what the judge says; None, counted, where it says nothing that can be read."""
    problem = ""
    for attempt in range(settings.max_attempts):
        judged.num_redrawn += attempt > 0
        try:
            reply = await chat.reply(_request(task.question, settings, attempt))
        except ChatFailedError as error:
            _count(judged, error.reason, task, str(error))
            return None
        try:
            return task.question.read(_whole(reply, settings))
        except MalformedVerdictError as error:
            problem = f"{error}, in {_short(reply.text)}"
    _count(judged, "unreadable", task, problem)
    return None


def _request(question: Question, settings: JudgeSettings, attempt: int) -> ChatRequest:
    return ChatRequest(
        messages=tuple(question.messages()),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature if attempt == 0 else max(settings.temperature, RETRY_TEMPERATURE),
        top_p=settings.top_p,
        seed=settings.seed + attempt,
        schema=question.schema(),
        key=question.key,
    )


def _whole(reply: ChatReply, settings: JudgeSettings) -> str:
    """Return the text of a reply; raises MalformedVerdictError where the model did not end it by itself."""
    if reply.finish_reason == "length":
        raise MalformedVerdictError(f"cut off by judge.max_tokens={settings.max_tokens}, or by its context")
    if not reply.whole:
        raise MalformedVerdictError(f"ended with {reply.finish_reason}")
    return reply.text


def _count(judged: Judged, reason: str, task: JudgeTask, problem: str) -> None:
    judged.failed[reason] += 1
    if len(judged.examples) < NUM_EXAMPLES:
        judged.examples.append(f"{task.place}: {reason}: {problem}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."


@dataclass(frozen=True, slots=True)
class JudgeEstimate:
    """What judging takes, before anything is asked."""

    questions: int
    prompt_tokens: int
    completion_tokens: int


def estimate(
    benchmark: Benchmark,
    samples: int,
    answer_tokens: Callable[[str], int],
    reply_tokens: int,
    num_tokens: Callable[[str], int],
) -> JudgeEstimate:
    """Return how much is asked about `samples` texts to each request, each question once.

    answer_tokens: by request id, of a text that is not written yet; reply_tokens: of a verdict with its reason;
    num_tokens: of a text that is there, such as a request, a criterion or a baseline's answer.
    """
    texts = [_unwritten(request.request_id, i) for request in benchmark.requests for i in range(samples)]
    questions = prompt_tokens = 0
    for task in judge_tasks(benchmark, texts, "\0"):
        questions += 1
        prompt_tokens += sum(num_tokens(message["content"]) for message in task.question.messages())
    each = questions // len(texts) if texts else 0
    if benchmark.name == "writingbench":
        asked = {r.request_id: len(r.criteria) for r in benchmark.requests}
    else:
        asked = {r.request_id: each for r in benchmark.requests}
    prompt_tokens += sum(answer_tokens(text.prompt_id) * asked[text.prompt_id] for text in texts)
    return JudgeEstimate(questions, prompt_tokens, questions * reply_tokens)


def _unwritten(request_id: str, sample_index: int) -> WrittenText:
    return WrittenText(request_id, "", "en", sample_index, "", None, "", "stop", 0, 0, 0, True)
