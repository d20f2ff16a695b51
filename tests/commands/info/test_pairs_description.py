"""`dmdistill info PAIRS` reads all of a set, and names what is damaged."""

import pytest

from dmdistill.commands.cli import main
from helpers.outcomes import ReportedError, run_command


@pytest.fixture
def folder(tiny_teacher, tmp_path):
    sizes = ["--pair-count", "5", "--shard-size", "2", "--solver-steps", "1"]
    machine = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
    main(["pairs", "--teacher", str(tiny_teacher), "--out", str(tmp_path / "pairs"), *sizes, *machine])
    return tmp_path / "pairs"


def test_a_sound_set_is_described(folder):
    text = run_command("info", folder)
    for part in ("verifying 5/5", "5 of 1 x 8 x 8, z float16, y float16", "heun, 1 steps", "verified", "3 files"):
        assert part in text


def test_damaged_files_are_named_in_one_line(folder):
    for shard in (0, 2):
        file = folder / f"shard-0000{shard}.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 8
        file.write_bytes(content)
    with pytest.raises(
        ReportedError, match=r"2 damaged files of 3: shard-00000\S+, shard-00002\S+; remove them, and make"
    ):
        run_command("info", folder)
    (folder / "shard-00001.safetensors").write_bytes(b"")
    with pytest.raises(ReportedError, match=r"shard-00001\.safetensors is truncated"):
        run_command("info", folder)
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(ReportedError, match=r"shard-00001\.safetensors does not exist: the set is incomplete"):
        run_command("info", folder)
