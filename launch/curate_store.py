"""The files of `stage=curate` in a run folder.

curated/texts-KEY.jsonl       one line a prompt: its texts, and why some were left out
curated/degraded-KEY.jsonl    one line a good text: its rejected copies
pairs.jsonl pairs_heldout.jsonl   the preference set, written whole at the end

KEY is a hash of the settings that shape the texts, so that a resumed run with other settings begins anew.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.files import append_line, complete_lines, replacing, to_json
from lwz_ray.config import Config
from lwz_ray.degrading import Degraded
from lwz_ray.good_texts import GoodText

PAIR_FILES = {"train": "pairs.jsonl", "heldout": "pairs_heldout.jsonl"}


class CurateStore:
    """Keeps what is done line by line; a line that a kill cut short is dropped and its work done again."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        parts = folder / "curated"
        parts.mkdir(exist_ok=True)
        key = settings_key(config)
        self._texts, self._degraded = parts / f"texts-{key}.jsonl", parts / f"degraded-{key}.jsonl"

    def read_texts(self) -> dict[str, tuple[list[GoodText], dict[str, int]]]:
        """Return prompt id -> its good texts and the counts of those left out, of the prompts that are done."""
        return {
            row["prompt_id"]: ([GoodText(**t) for t in row["texts"]], row["left_out"])
            for row in complete_lines(self._texts)
        }

    def add_texts(self, prompt_id: str, texts: list[GoodText], left_out: Mapping[str, int]) -> None:
        """Keep one prompt's texts."""
        rows = [{name: getattr(t, name) for name in GoodText.__slots__} for t in texts]
        append_line(self._texts, {"prompt_id": prompt_id, "texts": rows, "left_out": dict(left_out)})

    def read_degraded(self) -> dict[tuple[str, int], Degraded]:
        """Return (prompt id, sample) -> what became of it, of the texts that are done."""
        return {
            (row["prompt_id"], row["sample"]): Degraded(row["rejected"], row["missing"], row["ways"])
            for row in complete_lines(self._degraded)
        }

    def add_degraded(self, text: GoodText, done: Degraded) -> None:
        """Keep what became of one text."""
        row = {"prompt_id": text.prompt_id, "sample": text.sample}
        append_line(self._degraded, {**row, "rejected": done.rejected, "missing": done.missing, "ways": done.ways})

    def publish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write both files of pairs, each whole."""
        rows = list(rows)
        for split, name in PAIR_FILES.items():
            with replacing(self.folder / name) as file:
                file.writelines(to_json(row) + "\n" for row in rows if row["split"] == split)


def settings_key(config: Config) -> str:
    """Return a short hash of everything that shapes texts and pairs."""
    tree = config.model_dump(mode="json")
    shaping = {name: tree[name] for name in ("recipe", "seed", "model", "data", "template", "sampling", "curate")}
    shaping["dtype"] = config.actors.dtype
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]
