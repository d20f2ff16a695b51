"""Checkpoints on disk: no damage goes undetected."""

import errno
import os
import random
import threading
import zipfile

import pytest
import torch

from dmdistill.training.checkpoints import Checkpoints, DamagedCheckpointError, read_checkpoint


def state(seed):
    rng = torch.Generator().manual_seed(seed)
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": torch.randn(5, 3, generator=rng)} for i in range(2)}
    return {"step": seed, "rng": rng.get_state(), "sums": {}, "updates": {"a": {"optimizer": moments, "count": seed}}}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else (type(a), a) == (type(b), b)


def refuse(text):
    raise AssertionError(text)


@pytest.fixture
def checkpoints(tmp_path):
    """The states of steps 3, 6 and 9."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (3, 6, 9):
        checkpoints.write(step, state(step))
    checkpoints.wait()
    return checkpoints


def test_the_newest_is_read_as_it_was_written(checkpoints):
    file, found = checkpoints.newest(say=refuse)
    assert file == checkpoints.files()[-1]
    assert same(found, state(9))
    assert checkpoints.steps() == [3, 6, 9]


def test_where_nothing_was_saved_there_is_none(tmp_path):
    assert Checkpoints(tmp_path, keep=2).newest(say=refuse) is None


def test_no_flipped_bit_goes_undetected(checkpoints):
    """Of 500 single flips anywhere in the file, and all in its directory, each is found or means nothing."""
    file, rng = checkpoints.files()[0], random.Random(0)
    content, found = file.read_bytes(), 0
    with zipfile.ZipFile(file) as archive:
        directory = range(8 * archive.start_dir, 8 * len(content))
    for at in [*(rng.randrange(8 * len(content)) for _ in range(500)), *directory]:
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        try:
            assert same(read_checkpoint(file), state(3)), f"byte {at // 8}, bit {at % 8}"
        except DamagedCheckpointError:
            found += 1
    assert found > 1000, "all flips fell into padding"


def test_no_file_cut_short_goes_undetected(checkpoints):
    file = checkpoints.files()[0]
    content = file.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(file)


def test_no_zeroed_block_goes_undetected(checkpoints):
    """What a power cut leaves: the length is right, a block of the content is not there."""
    file = checkpoints.files()[0]
    content = file.read_bytes()
    for start in range(0, len(content), 512):
        damaged = content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]
        file.write_bytes(damaged)
        try:
            assert same(read_checkpoint(file), state(3))
        except DamagedCheckpointError:
            continue


def damage(file):
    file.write_bytes(file.read_bytes()[:-40])


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(checkpoints):
    _, second, third = checkpoints.files()
    said = []
    damage(third)
    file, found = checkpoints.newest(say=said.append)
    assert (file, said) == (second, [f"{third} cannot be used, {reason(said)}: resuming from the one before it"])
    assert same(found, state(6))
    damage(second)
    assert same(checkpoints.newest(say=said.append)[1], state(3))
    assert len(said) == 3
    assert not any("\n" in line for line in said)


def reason(said):
    """The reason in a line."""
    return said[0].split("cannot be used, ")[1].removesuffix(": resuming from the one before it")


def test_only_damaged_checkpoints_are_one_line(checkpoints):
    for file in checkpoints.files():
        file.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"step-00000003\.pt cannot be used.* those after it; remove .*checkpoints"
    ) as caught:
        checkpoints.newest(say=lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("keep", "steps"), [(1, [7]), (2, [6, 7]), (5, [3, 6, 7])])
def test_checkpoints_of_later_steps_are_removed_with_the_old(keep, steps, checkpoints):
    """A run that went back to step 6 leaves the damaged state of step 9 behind as soon as it has a new one."""
    Checkpoints(checkpoints.folder.parent, keep=keep, background=False).write(7, state(7))
    assert checkpoints.steps() == steps


@pytest.mark.parametrize("keep", [1, 2, 4, 8])
def test_as_many_checkpoints_stay_as_are_asked_for(keep, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=keep, background=False)
    for step in range(1, 11):
        checkpoints.write(step, state(step))
        assert checkpoints.steps() == [*range(max(1, step - keep + 1), step + 1)]


@pytest.fixture
def slow_disk(monkeypatch):
    """torch.save begins to write once it is released to."""
    released, save = threading.Event(), torch.save

    def wait(*arguments):
        assert released.wait(10)
        save(*arguments)

    monkeypatch.setattr(torch, "save", wait)
    return released


def test_what_is_written_is_the_state_at_the_call_however_long_the_disk_takes(tmp_path, slow_disk):
    checkpoints, mine = Checkpoints(tmp_path, keep=2), state(3)
    checkpoints.write(3, mine)
    assert (checkpoints.files(), checkpoints.steps()) == ([], [3])
    mine["updates"]["a"]["optimizer"][0]["exp_avg"].zero_()
    mine["updates"]["a"]["count"] = mine["step"] = 99
    slow_disk.set()
    assert same(checkpoints.newest(say=refuse)[1], state(3))  # which waits


def test_a_second_state_waits_for_the_first(tmp_path, slow_disk):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.write(3, state(3))
    threading.Timer(0.1, slow_disk.set).start()
    checkpoints.write(6, state(6))
    assert [file.name for file in checkpoints.files()][:1] == ["step-00000003.pt"]
    assert checkpoints.steps() == [3, 6]
    checkpoints.wait()
    assert same(read_checkpoint(checkpoints.files()[1]), state(6))


@pytest.mark.parametrize("how", ["wait", "write"])
def test_a_failed_write_is_reported_once_by_the_next_call(how, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def full(*_):
        """Fail as torch does on a full disk."""
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598\nmore")  # noqa: B904

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        checkpoints.write(3, state(3))
        checkpoints.thread.submit(int).result()  # after it
        assert checkpoints.failed
        with pytest.raises(OSError, match=r"step-00000003.pt cannot be written: No space left on device$"):
            checkpoints.wait() if how == "wait" else checkpoints.write(6, state(6))
    assert not checkpoints.failed
    assert checkpoints.files() == []
    checkpoints.write(9, state(9))
    checkpoints.wait()
    assert checkpoints.steps() == [9]


def test_without_a_thread_it_is_on_disk_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, background=False)
    checkpoints.write(3, state(3))
    assert same(read_checkpoint(checkpoints.files()[0]), state(3))
