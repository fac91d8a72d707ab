"""The rules between rooms, read from the source itself and from what an import loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("actors", "rewards", "learners")
PACKAGES = ("lwz_ray", *ROOMS, "launch")
FRONT_DOOR = "lwz_ray/main.py"
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
"""Exceptions to the two ceilings: path (path::function) -> lines; each needs a reason beside it."""
VLLM_FILES = {
    "actors/vllm_engine.py",  # the engine, in the Ray actor
    "actors/vllm_build.py",  # what the engine is built from, imported by it
    "actors/vllm_transfer.py",  # the weight-transfer backend, in vLLM's own worker process
    "rewards/vllm_classifier.py",  # the pooling runner
    "learners/vllm_nccl.py",  # vLLM's trainer-side sender
}


def source_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (REPO_ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(REPO_ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything a file imports, at any depth, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(name: str, *packages: str) -> set[str]:
    """Return the files of `packages` that import `name` or something below it."""
    return {
        relative(path)
        for path in source_files(*packages)
        if any(found == name or found.startswith(f"{name}.") for found in imports(path))
    }


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts).removesuffix(".__init__")


def loaded_by(modules: list[str], watched: tuple[str, ...]) -> dict[str, list[str]]:
    """Import each module in a fresh interpreter, one after the other; return which watched packages each brought in."""
    code = (
        "import importlib, json, sys\n"
        "modules, watched = json.loads(sys.argv[1])\n"
        "found, before = {}, set()\n"
        "for name in modules:\n"
        "    importlib.import_module(name)\n"
        "    now = {w for w in watched if w in sys.modules}\n"
        "    found[name], before = sorted(now - before), now\n"
        "print('RESULT' + json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([modules, watched])],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def test_each_package_name_is_this_repository() -> None:
    code = "import importlib, json\n" + f"print([importlib.import_module(p).__file__ for p in {PACKAGES!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == [str(REPO_ROOT / package / "__init__.py") for package in PACKAGES]


@pytest.mark.slow
def test_lwz_ray_loads_no_cluster_library() -> None:
    modules = [module_name(p) for p in source_files("lwz_ray") if relative(p) != FRONT_DOOR]
    watched = ("ray", "vllm", "hydra", "omegaconf", "wandb", "deepspeed", *ROOMS, "launch")
    found = loaded_by(modules, watched)
    assert len(found) > 10
    assert {name: extra for name, extra in found.items() if extra} == {}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_room_loads_neither_cluster_nor_other_rooms(room: str) -> None:
    modules = [module_name(p) for p in source_files(room) if p.name != "remote.py" and relative(p) not in VLLM_FILES]
    others = tuple(r for r in (*ROOMS, "launch") if r != room)
    found = loaded_by(modules, ("ray", "vllm", "hydra", "omegaconf", "wandb", "deepspeed", *others))
    assert room in found
    assert {name: extra for name, extra in found.items() if extra} == {}


def test_only_remote_files_of_a_room_import_ray() -> None:
    found = importers("ray", "lwz_ray", *ROOMS)
    assert found <= {f"{room}/remote.py" for room in ROOMS}
    assert "actors/remote.py" in found


def test_vllm_is_imported_only_where_allowed() -> None:
    found = importers("vllm", *PACKAGES)
    assert found <= VLLM_FILES
    assert "actors/vllm_engine.py" in found


def test_deepspeed_is_imported_by_its_backend_only() -> None:
    assert importers("deepspeed", *PACKAGES) == {"learners/deepspeed.py"}


def test_torch_distributed_is_used_only_by_learners() -> None:
    names = {name for path in source_files("lwz_ray", "actors", "rewards", "launch") for name in imports(path)}
    assert not [name for name in names if name.startswith("torch.distributed")]
    for path in source_files("lwz_ray", "actors", "rewards", "launch"):
        uses = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
        ]
        assert not uses, f"{relative(path)}: torch.distributed on lines {uses}"
    assert importers("torch.distributed", "learners")


def test_nothing_imports_the_front_door() -> None:
    assert importers("lwz_ray.main", *PACKAGES) == set()
    assert importers("launch", "lwz_ray") == {FRONT_DOOR}


def test_rooms_import_only_lwz_ray_of_ours() -> None:
    for room in ROOMS:
        for other in (*ROOMS, "launch"):
            assert other == room or importers(other, room) == set(), f"{room}/ imports {other}"


def test_every_package_says_what_it_is() -> None:
    for package in PACKAGES:
        docstring = ast.get_docstring(ast.parse((REPO_ROOT / package / "__init__.py").read_text()))
        assert docstring and len(docstring.splitlines()) == 1, f"{package}/__init__.py needs a one-line docstring"


def checked_files() -> list[Path]:
    return source_files(*PACKAGES, "tests", "benchmarks")


def test_files_stay_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in checked_files()}
    assert {p: n for p, n in lengths.items() if n > LONG_FILES.get(p, MAX_FILE_LINES)} == {}
    assert {p for p in LONG_FILES if lengths.get(p, 0) <= MAX_FILE_LINES} == set(), "exceptions no longer needed"


def test_functions_stay_short() -> None:
    lengths = {
        f"{relative(path)}::{node.name}": node.end_lineno - node.lineno + 1
        for path in checked_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {f: n for f, n in lengths.items() if n > LONG_FUNCTIONS.get(f, MAX_FUNCTION_LINES)} == {}
    assert {f for f in LONG_FUNCTIONS if lengths.get(f, 0) <= MAX_FUNCTION_LINES} == set(), (
        "exceptions no longer needed"
    )
