"""The local model folders: complete or made anew, never half."""

from pathlib import Path

import pytest

from launch.setup_models import EMBEDDER, FILES, MARKER, build, is_complete, package_folder, write_embedder
from lwz_ray.errors import UserError


def test_the_embedder_is_copied_once(tmp_path: Path) -> None:
    folder = tmp_path / EMBEDDER
    assert build(folder, write_embedder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, MARKER, "README.md"])
    assert "license: apache-2.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert not build(folder, write_embedder)
    (folder / "tokenizer.json").unlink()
    assert not is_complete(folder)
    assert build(folder, write_embedder)
    assert is_complete(folder)


def test_a_folder_of_another_recipe_is_not_complete(tmp_path: Path) -> None:
    folder = tmp_path / EMBEDDER
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("{}")
    (folder / MARKER).write_text('{"recipe": "packaged float32, 0"}')
    assert not is_complete(folder)
    (folder / MARKER).write_text('{"recipe": "packaged float32, 1"}')
    assert is_complete(folder)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(tmp_path / EMBEDDER, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["no_such_package_at_all", "lwz_ray"])
def test_a_package_without_the_file_is_named(module: str) -> None:
    with pytest.raises(UserError, match=r"model\.bin not found: the package some-model is not installed"):
        package_folder(module, "model.bin", "some-model")
