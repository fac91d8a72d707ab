"""Run the offline linters, so that a broken rule fails the suite and not only `make lint`."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("lint-imports",)],
    ids=lambda command: "-".join(command),
)
def test_linter_has_nothing_to_say(command: tuple[str, ...], repo_root: Path) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], cwd=repo_root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
