"""Staged weights are private, verified, and leave with their writer."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from lwz_ray.errors import InfrastructureError
from lwz_ray.staging import (
    PREFIX,
    StagedVersions,
    StagingFolder,
    check_one_version,
    read_bucket,
    read_staged,
    sweep,
)
from lwz_ray.weights import Bucket, CorruptBucketError, pack_buckets


def bucket(version: int = 3) -> Bucket:
    (made,) = pack_buckets([("w", torch.arange(6.0).reshape(2, 3)), ("b", torch.ones(3).bfloat16())], version, 1000)
    return made


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_bucket_goes_through_private_files(tmp_path: Path) -> None:
    folder = StagingFolder((str(tmp_path),), 100)
    header = folder.write(bucket())
    assert header == str(folder.root / "v000003_00000.json")
    assert sorted(p.name for p in folder.root.iterdir()) == ["v000003_00000.bin", "v000003_00000.json"]
    assert mode(folder.root) == 0o700
    assert [mode(p) for p in folder.root.iterdir()] == [0o600, 0o600]
    out = dict(read_staged(header))
    assert torch.equal(out["w"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(out["b"], torch.ones(3).bfloat16())


def test_clear_keeps_the_folder_and_remove_takes_it(tmp_path: Path) -> None:
    folder = StagingFolder((str(tmp_path),), 100)
    folder.write(bucket())
    folder.clear()
    assert list(folder.root.iterdir()) == []
    folder.write(bucket(4))
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def files(parent: Path) -> list[str]:
    """Return the staged files below a folder, by the folder of their version and their own name."""
    return sorted(f"{p.parent.name}/{p.name}" for p in parent.rglob("v*.bin"))


def test_two_versions_are_held_until_the_newer_is_everywhere(tmp_path: Path) -> None:
    versions = StagedVersions((str(tmp_path),), 100)
    first = versions.stage(3, [bucket(3)])
    assert (first.policy_version, first.num_bytes) == (3, 30)
    second = versions.stage(4, [bucket(4)])
    assert files(tmp_path) == ["staged-000001/v000003_00000.bin", "staged-000002/v000004_00000.bin"]
    assert read_bucket(first.header_paths[0]).header.policy_version == 3
    versions.drop_older()
    assert files(tmp_path) == ["staged-000002/v000004_00000.bin"]
    versions.drop_older()
    assert dict(read_staged(second.header_paths[0]))["b"].tolist() == [1.0, 1.0, 1.0]
    versions.stage(5, [bucket(5)])
    versions.stage(6, [bucket(6)])  # version 4 was never dropped: staging does it
    assert files(tmp_path) == ["staged-000003/v000005_00000.bin", "staged-000004/v000006_00000.bin"]
    versions.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_staged_again_leaves_the_first_alone(tmp_path: Path) -> None:
    versions = StagedVersions((str(tmp_path),), 100)
    first, again = (versions.stage(3, [bucket(3)]).header_paths for _ in range(2))
    assert set(first).isdisjoint(again) and all(Path(p).is_file() for p in (*first, *again))


def test_what_is_staged_in_part_is_deleted_and_the_last_version_stays(tmp_path: Path) -> None:
    versions = StagedVersions((str(tmp_path),), 100)
    kept = versions.stage(3, [bucket(3)])

    def breaks_off() -> Iterator[Bucket]:
        yield bucket(4)
        raise OSError(28, "No space left on device")

    with pytest.raises(InfrastructureError, match=r"policy version 4 could not be staged in .*No space left on device"):
        versions.stage(4, breaks_off())
    assert files(tmp_path) == ["staged-000001/v000003_00000.bin"]
    versions.drop_older()
    assert Path(kept.header_paths[0]).is_file()


def test_room_for_two_versions_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no folder can stage 2199023255552 MiB of weights"):
        StagedVersions((str(tmp_path),), 2**60)


def test_an_update_holds_every_bucket_of_one_version(tmp_path: Path) -> None:
    folder = StagingFolder((str(tmp_path),), 100)
    three, four = folder.write(bucket(3)), folder.write(bucket(4))
    first, second = (folder.write(b) for b in pack_buckets([("a", torch.ones(9)), ("b", torch.ones(9))], 5, 36))
    check_one_version([first, second])
    for mixed in ([three, four], [second, first], [second], [first, first]):
        with pytest.raises(ValueError, match="buckets of an update are out of order or mixed"):
            check_one_version(mixed)


def test_damage_on_the_way_is_noticed(tmp_path: Path) -> None:
    folder = StagingFolder((str(tmp_path),), 100)
    header = folder.write(bucket())
    payload = Path(header).with_suffix(".bin")
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(CorruptBucketError, match="bucket 0 of policy version 3: 29 bytes, the header says 30"):
        next(read_staged(header))


def test_the_first_folder_with_room_is_taken(tmp_path: Path) -> None:
    candidates = (str(tmp_path / "missing"), str(tmp_path))
    assert StagingFolder(candidates, 100).root.parent == tmp_path


def test_no_room_anywhere_names_the_folders_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError) as caught:
        StagingFolder((str(tmp_path), str(tmp_path / "missing")), 2**60)
    text = str(caught.value)
    assert text.startswith(f"no folder can stage 1099511627776 MiB of weights (tried {tmp_path}, {tmp_path}/missing: ")
    assert f"{tmp_path} has " in text and text.endswith("set weights.staging_dir to a local folder with room")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InfrastructureError, match="none is writable"):
        StagingFolder((str(tmp_path / "missing"),), 1)


def abandoned_by_a_child(parent: Path) -> str:
    """Let a real process stage weights and end by SIGKILL; return its folder's name."""
    code = (
        "import os, signal, sys; from lwz_ray.staging import StagingFolder;"
        "print(StagingFolder((sys.argv[1],), 1).root.name, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(parent)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_a_killed_writers_folder_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    mine = StagingFolder((str(tmp_path),), 1)
    dead = abandoned_by_a_child(tmp_path)
    assert (tmp_path / dead).is_dir()
    another = StagingFolder((str(tmp_path),), 1)  # sweeps before it makes its own
    assert sorted(tmp_path.iterdir()) == sorted([mine.root, another.root])


def test_a_process_id_that_was_given_out_again_counts_as_dead(tmp_path: Path) -> None:
    me = psutil.Process()
    earlier, now = int(me.create_time()) - 60, int(me.create_time()) + 1
    for started in (earlier, now):
        (tmp_path / f"{PREFIX}{me.pid}-{started}-0123abcd").mkdir()
    assert sweep(str(tmp_path)) == [f"{PREFIX}{me.pid}-{earlier}-0123abcd"]
    assert [p.name for p in tmp_path.iterdir()] == [f"{PREFIX}{me.pid}-{now}-0123abcd"]


def test_folders_with_other_names_are_left_alone(tmp_path: Path) -> None:
    names = ["elsewhere", f"{PREFIX}notes", f"{PREFIX}1-x-0123abcd"]
    for name in names:
        (tmp_path / name).mkdir()
    assert sweep(str(tmp_path)) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
