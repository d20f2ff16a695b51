"""States on disk: whatever spoils one, it is never believed."""

import random
import threading

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
def kept(tmp_path):
    """The states of steps 3, 6 and 9."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (3, 6, 9):
        checkpoints.write(step, state(step))
    checkpoints.wait()
    return checkpoints


def test_the_newest_is_read_as_it_was_written(kept):
    file, found = kept.newest(say=refuse)
    assert file == kept.files()[-1]
    assert same(found, state(9))
    assert kept.steps() == [3, 6, 9]


def test_where_nothing_was_saved_there_is_none(tmp_path):
    assert Checkpoints(tmp_path, keep=2).newest(say=refuse) is None


def test_no_flipped_bit_is_believed(kept):
    """Of 500 single flips anywhere in the file, each is either found or in a byte that means nothing."""
    file, rng = kept.files()[0], random.Random(0)
    whole, found = file.read_bytes(), 0
    for _ in range(500):
        at = rng.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[at // 8] ^= 1 << at % 8
        file.write_bytes(spoilt)
        try:
            assert same(read_checkpoint(file), state(3)), f"byte {at // 8}, bit {at % 8}"
        except DamagedCheckpointError:
            found += 1
    assert found > 100, "all flips fell into padding"


def test_no_file_cut_short_is_believed(kept):
    file = kept.files()[0]
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(file)


def test_no_zeroed_block_is_believed(kept):
    """What a power cut leaves: the length is right, a block of the content is not there."""
    file = kept.files()[0]
    whole = file.read_bytes()
    for start in range(0, len(whole), 512):
        spoilt = whole[:start] + bytes(len(whole[start : start + 512])) + whole[start + 512 :]
        file.write_bytes(spoilt)
        try:
            assert same(read_checkpoint(file), state(3))
        except DamagedCheckpointError:
            continue


def spoil(file):
    file.write_bytes(file.read_bytes()[:-40])


def test_a_damaged_one_is_reported_and_the_one_before_it_used(kept):
    _, second, third = kept.files()
    said = []
    spoil(third)
    file, found = kept.newest(say=said.append)
    assert (file, said) == (second, [f"{third} cannot be used, {told(said)}: resuming from the one before it"])
    assert same(found, state(6))
    spoil(second)
    assert same(kept.newest(say=said.append)[1], state(3))
    assert len(said) == 3
    assert not any("\n" in line for line in said)


def told(said):
    """The reason in a line."""
    return said[0].split("cannot be used, ")[1].removesuffix(": resuming from the one before it")


def test_where_none_is_whole_it_is_one_clear_line(kept):
    for file in kept.files():
        file.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"step-00000003\.pt cannot be used.* those after it; remove .*checkpoints"
    ) as caught:
        kept.newest(say=lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("keep", "steps"), [(1, [7]), (2, [6, 7]), (5, [3, 6, 7])])
def test_what_is_later_than_the_newest_goes_with_the_old(keep, steps, kept):
    """A run that went back to step 6 leaves the damaged state of step 9 behind as soon as it has a new one."""
    Checkpoints(kept.folder.parent, keep=keep, background=False).write(7, state(7))
    assert kept.steps() == steps


@pytest.fixture
def slow_disk(monkeypatch):
    """torch.save begins to write once it is told to."""
    told, save = threading.Event(), torch.save

    def wait(*arguments):
        assert told.wait(10)
        save(*arguments)

    monkeypatch.setattr(torch, "save", wait)
    return told


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
def test_a_failed_write_is_told_once_by_what_comes_next(how, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def full(*_):
        raise RuntimeError("file write failed\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        checkpoints.write(3, state(3))
        checkpoints.thread.submit(int).result()  # after it
        assert checkpoints.failed
        with pytest.raises(OSError, match=r"step-00000003.pt cannot be written: file write failed$"):
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
