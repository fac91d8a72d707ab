"""`python -m tests.suite` on a small project: both halves run, whatever became of the first, and both are told of."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import status_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a unit test that passes, one that fails, and an integration test that leaves a file."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in {
        "unit/test_one.py": "def test_good(): pass\ndef test_bad(): assert 1 == 2\n",
        "integration/test_two.py": "from pathlib import Path\ndef test_runs(): Path('ran').touch()\n",
    }.items():
        file = folder / "tests" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return folder


def suite(project: Path, repo_root: Path, *words: str) -> tuple[int, str]:
    """Return the status, and the last line with its seconds left out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.suite", "-n", "0", "-p", "no:cacheprovider", *words],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, re.sub(r" in \d+ s", "", done.stdout.splitlines()[-1])


def test_the_second_half_runs_where_the_first_one_failed(project: Path, repo_root: Path) -> None:
    status, last = suite(project, repo_root)
    assert (status, last) == (1, "suite: arch, property, unit: failed; contract, integration: passed")
    assert (project / "ran").exists()


def test_words_may_leave_a_half_without_tests(project: Path, repo_root: Path) -> None:
    status, last = suite(project, repo_root, "tests/integration/test_two.py")
    assert (status, last) == (0, "suite: arch, property, unit: no tests; contract, integration: passed")


def test_a_bad_status_wins_and_no_test_at_all_is_told() -> None:
    assert [status_of(both) for both in ([0, 0], [0, 5], [5, 1], [1, 0], [1, 2], [5, 5])] == [0, 0, 1, 1, 1, 5]
