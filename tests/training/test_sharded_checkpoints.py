"""Checkpoints to which each process writes its shards."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dmdistill.training.checkpoints import Checkpoints, DamagedCheckpointError, read_checkpoint, write_single_file
from helpers.process_group_tests import together
from helpers.sharded_runs import train, train_on_a_full_disk, train_on_a_slow_disk

FOLDERS = ["step-00000002", "step-00000004"]


def arrays(state):
    """List the arrays of a nested state."""
    if isinstance(state, dict | list | tuple):
        return [one for value in (state.values() if isinstance(state, dict) else state) for one in arrays(value)]
    return [state] if isinstance(state, np.ndarray) else []


def run(processes, *arguments):
    """The arrays of the state that a training ends with."""
    return arrays(together(processes, train, *arguments)[0][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two processes, of four steps."""
    folder = tmp_path_factory.mktemp("sharded")
    run(2, folder, "fsdp", 4)
    return folder


@pytest.fixture
def checkpoints(folder, tmp_path):
    """A copy of its checkpoints."""
    shutil.copytree(folder, tmp_path / "run")
    return Checkpoints(tmp_path / "run", keep=2)


def test_each_process_writes_its_shards_and_no_other_file_is_left(folder):
    """Shards of both are parts of the whole; together they are as large."""
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == FOLDERS
    newest = folder / "checkpoints" / FOLDERS[-1]
    files = sorted(path.name for path in newest.iterdir())
    assert files == ["shards-00000.safetensors", "shards-00001.safetensors", "state.pt"]
    sizes = [sum(one.numel() for one in load_file(newest / name).values()) for name in files[:2]]
    index = torch.load(newest / "state.pt", weights_only=True)["shards"]
    assert sum(sizes) == sum(np.prod(one["shape"]) for one in index["tensors"].values())
    assert min(sizes) > 0.3 * sum(sizes)


def test_a_run_resumed_by_as_many_processes_is_the_same_bit_for_bit(checkpoints, tmp_path):
    whole = run(2, tmp_path / "whole", "fsdp", 6)
    assert all(map(np.array_equal, run(2, checkpoints.folder.parent, "fsdp", 6), whole))


def test_with_hybrid_sharding_each_shard_is_written_once(folder, tmp_path):
    """Of four processes in groups of two; a single process reads them."""
    whole = run(4, tmp_path, "fsdp", 4, 2)
    newest = tmp_path / "checkpoints" / FOLDERS[-1]
    sizes = [sum(one.numel() for one in load_file(file).values()) for file in sorted(newest.glob("*.safetensors"))]
    index = torch.load(newest / "state.pt", weights_only=True)["shards"]
    assert sum(sizes) == sum(np.prod(one["shape"]) for one in index["tensors"].values())
    assert all(map(np.array_equal, run(1, tmp_path, "ddp", 4), whole))


@pytest.mark.parametrize(
    ("processes", "strategy", "group"), [(1, "ddp", 0), (2, "ddp", 0), (4, "fsdp", 0), (4, "fsdp", 2)]
)
def test_a_run_is_resumed_by_other_processes(processes, strategy, group, checkpoints, tmp_path):
    """In double precision nothing but its rounding is left; a single file is written where nothing is sharded."""
    whole = run(1, tmp_path / "whole", "ddp", 6)
    resumed = run(processes, checkpoints.folder.parent, strategy, 6, group)
    assert len(whole) == len(resumed) > 60
    for one, other in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)
    ending = "" if strategy == "fsdp" else ".pt"
    assert [path.name for path in checkpoints.files()] == ["step-00000004", f"step-00000006{ending}"]


def test_the_single_file_is_that_of_a_run_without_shards(checkpoints, tmp_path):
    """The same entries, of the same kinds, and the same numbers but for rounding."""
    run(1, tmp_path / "whole", "ddp", 4)
    expected = read_checkpoint(tmp_path / "whole" / "checkpoints" / "step-00000004.pt")
    found = read_checkpoint(write_single_file(checkpoints.files()[-1]))
    for key in ("seconds", "log", "sums"):
        del expected[key], found[key]

    def compare(one, other):
        assert type(one) is type(other)
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            [compare(one[key], other[key]) for key in one]
        elif isinstance(one, list | tuple):
            assert len(one) == len(other)
            [compare(*pair) for pair in zip(one, other, strict=True)]
        elif isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
        else:
            assert one == other

    compare(found, expected)


@pytest.mark.parametrize("name", ["shards-00001.safetensors", "state.pt"])
@pytest.mark.parametrize("how", ["flipped", "short", "missing"])
def test_damage_is_one_line_and_the_checkpoint_before_it_is_used(name, how, checkpoints):
    first, second = checkpoints.files()
    file, said = second / name, []
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content if how == "flipped" else content[:-9])
    found, state = checkpoints.newest(say=said.append)
    assert (found, state["step"]) == (first, 2)
    (line,) = said
    assert str(second) in line
    assert "resuming from the one before it" in line
    assert "\n" not in line
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(second)


def test_a_folder_that_is_not_complete_is_no_checkpoint(checkpoints):
    """As a killed process leaves it; the next checkpoint removes it."""
    first, second = checkpoints.files()
    shutil.copytree(second, second.with_name(".step-00000003.tmp"))
    second.rename(second.with_name(f".{second.name}.tmp"))
    assert checkpoints.files() == [first]
    run(2, checkpoints.folder.parent, "fsdp", 4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == FOLDERS


def test_what_is_written_is_the_state_at_the_save_however_long_the_disk_takes(folder, tmp_path):
    """Training goes on meanwhile."""
    together(2, train_on_a_slow_disk, tmp_path, 6)
    for name in ("shards-00000.safetensors", "shards-00001.safetensors"):
        found, expected = (one / "checkpoints" / FOLDERS[1] / name for one in (tmp_path, folder))
        assert found.read_bytes() == expected.read_bytes()


def test_a_disk_that_is_full_is_one_line_and_leaves_no_checkpoint(tmp_path):
    """In one process; the others end without a message of their own."""
    results = [result for result, _ in together(2, train_on_a_full_disk, tmp_path)]
    (line,) = set(results) - {2}
    assert line.endswith("step-00000002/shards-00001.safetensors cannot be written: No space left on device")
    assert Checkpoints(tmp_path, keep=2).files() == []
