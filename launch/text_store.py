"""The texts of a run, kept one by one while they are written.

written/texts-KEY.jsonl   a line a text, in the order in which they end
texts.jsonl               all of them in the order of their requests, written whole at the end

KEY is a hash of the settings that shape texts and of the model's files, so that a resumed run with others begins anew.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launch.files import append_line, complete_lines, replacing, to_json
from lwz_ray.config import Config
from lwz_ray.records import Prompt
from lwz_ray.texts import WrittenText

TEXTS_FILE = "texts.jsonl"


class TextStore:
    """Keeps texts line by line; a line that a kill cut short is dropped and its text written again."""

    def __init__(self, folder: Path, config: Config) -> None:
        """folder: the run's; config: with the model as a local folder."""
        self.folder = folder
        parts = folder / "written"
        parts.mkdir(exist_ok=True)
        self._path = parts / f"texts-{text_key(config)}.jsonl"
        self._texts: dict[tuple[str, int], WrittenText] = {}
        for number, row in enumerate(complete_lines(self._path), start=1):
            text = WrittenText.from_dict(row, f"{self._path}, line {number}")
            self._texts[text.prompt_id, text.sample_index] = text

    def get(self, prompt: Prompt, sample_index: int) -> WrittenText | None:
        """Return a text that is there already; None also where it answers another request of the same id."""
        text = self._texts.get((prompt.prompt_id, sample_index))
        if text is None or (text.prompt, text.language) != (prompt.text, prompt.language):
            return None
        return text

    def add(self, text: WrittenText) -> None:
        """Keep one text."""
        append_line(self._path, text.as_dict())
        self._texts[text.prompt_id, text.sample_index] = text

    def publish(self, texts: Iterable[WrittenText]) -> Path:
        """Write `texts.jsonl` whole; return its path."""
        path = self.folder / TEXTS_FILE
        with replacing(path) as file:
            file.writelines(to_json(text.as_dict()) + "\n" for text in texts)
        return path


def text_key(config: Config) -> str:
    """Return a short hash of everything that shapes a text beside its request."""
    tree = config.model_dump(mode="json")
    shaping: dict[str, Any] = {name: tree[name] for name in ("seed", "model", "template", "sampling")}
    room = config.actors
    shaping["actors"] = [room.dtype, room.sample_deadline_s, tree["actors"]["repetition_stop"]]
    shaping["files"] = _files(Path(config.model.path))
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a model's files: a folder of the same name may hold other weights by now."""
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
