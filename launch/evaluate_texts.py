"""Texts that are there already, matched with a benchmark's requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.files import iter_json_lines, replacing, to_json
from launch.text_store import TEXTS_FILE
from lwz_ray.benchmarks.loading import check_texts
from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest
from lwz_ray.config import Config
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.texts import WrittenText


@dataclass(frozen=True, slots=True)
class GivenTexts:
    """Texts to the requests of a benchmark, in their order."""

    texts: list[WrittenText]
    unused: int
    """Lines of the file that belong to no request or to a sample that is not asked for."""


def prompts_of(benchmark: Benchmark) -> list[Prompt]:
    """Return the requests as prompts; a required length is its own range, which decides who is written first."""
    found = []
    for index, request in enumerate(benchmark.requests):
        words = request.required_words
        asked = None if words is None else (words, words)
        found.append(Prompt(request.request_id, request.text, request.language, asked, index))
    return found


def texts_file(path: str) -> Path:
    """Return the file of `evaluate.texts_path`, which may be a run folder that holds a texts.jsonl."""
    file = Path(path)
    if file.is_dir():
        file = file / TEXTS_FILE
    if not file.is_file():
        raise UserError(f"evaluate.texts_path={path!r}: no such file; name a texts.jsonl, or the run folder it is in")
    return file


def read_texts(config: Config, benchmark: Benchmark) -> GivenTexts:
    """Return the texts of `evaluate.texts_path`, `evaluate.samples_per_request` to each request.

    A line belongs to the request of its `prompt_id` where both have the same words, else to the request with the
    words of its `prompt`: two systems number requests differently.

    Raises UserError with the line of a text that cannot be read, and as `check_texts` does.
    """
    assert config.evaluate.texts_path is not None
    path, samples = texts_file(config.evaluate.texts_path), config.evaluate.samples_per_request
    by_id = {request.request_id: request for request in benchmark.requests}
    by_text = {request.text.strip(): request for request in benchmark.requests}
    found: list[WrittenText] = []
    unused = 0
    for number, row in enumerate(iter_json_lines(path), start=1):
        text = WrittenText.from_dict(row, f"{path}, text {number}")
        request = _request_of(text, by_id, by_text)
        if request is None or text.sample_index >= samples:
            unused += 1
        else:
            found.append(replace(text, prompt_id=request.request_id, prompt=request.text, language=request.language))
    check_texts(benchmark, found, f"evaluate.texts_path={str(path)!r}", samples)
    places = benchmark.positions
    return GivenTexts(sorted(found, key=lambda text: (places[text.prompt_id], text.sample_index)), unused)


def _request_of(
    text: WrittenText, by_id: dict[str, BenchmarkRequest], by_text: dict[str, BenchmarkRequest]
) -> BenchmarkRequest | None:
    same = by_id.get(text.prompt_id)
    if same is not None and same.text.strip() == text.prompt.strip():
        return same
    return by_text.get(text.prompt.strip())


class TextSource:
    """Where an evaluation's texts come from: prompts for the model, or texts that are there."""

    def __init__(self, config: Config, benchmark: Benchmark, encoder: PromptEncoder | None) -> None:
        """encoder: of the model that writes; None where texts are given.

        Raises UserError where no request is left, and as `read_texts` does.
        """
        self.encoder = encoder
        self.prompts: list[Prompt] = []
        self.given: list[WrittenText] = []
        self.left_out: list[str] = []
        """Requests that are longer than data.max_prompt_tokens: nothing is written to them, and nothing scored."""
        self.unused = 0
        if encoder is None:
            found = read_texts(config, benchmark)
            self.given, self.unused = found.texts, found.unused
            return
        limit = config.data.max_prompt_tokens
        for prompt in prompts_of(benchmark):
            if encoder.num_tokens(prompt) > limit:
                self.left_out.append(prompt.prompt_id)
            else:
                self.prompts.append(prompt)
        if not self.prompts:
            raise UserError(
                f"data.max_prompt_tokens={limit}: every request of {benchmark.name} is longer with its template; raise "
                "it, and model.max_length_tokens with it"
            )


def publish_texts(folder: Path, texts: Sequence[WrittenText]) -> None:
    """Leave the texts in the run folder, in the order of their requests."""
    with replacing(folder / TEXTS_FILE) as file:
        file.writelines(to_json(text.as_dict()) + "\n" for text in texts)


def told_texts(samples: Path) -> set[tuple[str, int]]:
    """Return request and index of the texts that `samples.jsonl` holds already."""
    lines = iter_json_lines(samples)
    return {(line["prompt_id"], line["sample_index"]) for line in lines if not line.get("superseded")}
