"""The documentation knows every key, its links and commands lead somewhere, and nothing in it waits to be filled in."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from launch.compose import CONF, parse_words
from launch.schema import known_keys

REPO_ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPO_ROOT.glob("*.md"), *(REPO_ROOT / "docs").rglob("*.md"), REPO_ROOT / "lwz_ray" / "prompts" / "README.md"]
)
IDS = [p.relative_to(REPO_ROOT).as_posix() for p in PAGES]
MARKER = "TODO-RESULTS"
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(
    r"\b(?:lwz_ray|actors|rewards|learners|launch|conf|tests|docs|requirements)/[\w./-]*?\w\.(?:py|ya?ml|md|sh|txt|jsonl)\b"
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented() -> dict[str, tuple[str, str]]:
    """Return key -> what it needs and its default, from the tables of docs/configuration.md."""
    lines = (REPO_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines()
    rows = [match for line in lines if (match := ROW.match(line))]
    found = {row[1]: (row[2], row[4]) for row in rows}
    assert len(found) == len(rows), "a key has two rows"
    return found


def defaults() -> dict[str, Any]:
    """Return the tree that conf/ gives without a preset."""
    with initialize_config_dir(str(CONF), version_base=None):
        tree = OmegaConf.to_container(compose("config", ["~run"]), resolve=True)
    assert isinstance(tree, dict)
    return {str(k): v for k, v in tree.items()}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the config words of each front-door command, `make demo` and `make smoke` in a page's bash blocks."""
    blocks = [block for language, block in BLOCK.findall(text) if language == "bash"]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "lwz_ray.main" in words:
                own = words[words.index("lwz_ray.main") + 1 :]
                yield list(takewhile(lambda word: word not in (">", "|"), own))
            elif words[:1] == ["make"] and {"demo", "smoke"} & set(words):
                yield [w for word in words if word.startswith("ARGS=") for w in word.removeprefix("ARGS=").split()]


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_key_is_documented_with_what_it_needs():
    keys = {name: key.needs for name, key in known_keys().items() if not key.is_section}
    assert {name: needs for name, (needs, _) in documented().items()} == keys


def test_documented_defaults_are_those_of_conf(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tree = defaults()
    for name, (_, shown) in documented().items():
        node: Any = tree
        for part in name.split("."):
            node = node.get(part, "preset") if isinstance(node, dict) else node
        if shown == "preset":
            assert node == "preset", name
        elif shown != "file":
            assert yaml.safe_load(shown.strip("`")) == node, name


def test_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/results.md", "docs/decisions/0007-deepspeed-later.md"} <= set(IDS)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path):
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in heading_anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_exist(page: Path):
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (REPO_ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_ones_that_the_front_door_knows(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        parse_words([w for w in words if w not in ("--cfg", "job")])


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (REPO_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {t for p in PAGES for t in re.findall(r"`make ([a-z][a-z-]+)", p.read_text(encoding="utf-8"))}
    assert {"demo", "smoke", "bench"} <= named
    assert named - targets == set()


def test_no_result_is_left_to_fill_in():
    left = {name: page.read_text(encoding="utf-8").count(MARKER) for name, page in zip(IDS, PAGES, strict=True)}
    assert {name: count for name, count in left.items() if count} == {}
