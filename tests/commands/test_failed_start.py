"""A run or a set of pairs that fails before its first result leaves the disk as it was, but for pairs that are done."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from dmdistill.commands.cli import main
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.teach import command as teaching
from dmdistill.core.denoisers import EDMDenoiser
from helpers.runs import student_bytes

METHOD = """
import dataclasses
from dmdistill import dmd

def fail(*_):
    raise {error}

def undone(generator, real, fake):
    return dataclasses.replace(dmd(generator, real, fake), sampler=fail)
"""
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
RUN = ["--steps", "3", "--batch", "3", "--batch-reg", "2", "--pair-count", "6", "--solver-steps", "2", *CPU]
RUN += ["--report-images", "0", "--evaluate-images", "4"]
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


@contextmanager
def no_memory():
    """No step of a distillation fits."""
    with mock.patch.object(Distillation, "iterate", side_effect=NO_MEMORY):
        yield


def failed(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2


def entries(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_first_step_without_memory_leaves_nothing(existing, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "runs" / "one"
    if existing:
        (out / ".git").mkdir(parents=True)
    before = entries(tmp_path)
    with no_memory():
        failed("distill", "--teacher", tiny_teacher, "--out", out, "--lambda-reg", 0, *RUN)
    assert "out of memory: try a smaller --batch" in capsys.readouterr().err
    assert entries(tmp_path) == before


def test_pairs_that_are_done_stay_for_the_next_attempt(tiny_teacher, tmp_path):
    arguments = ["distill", "--teacher", tiny_teacher, *RUN, "--out"]
    with no_memory():
        failed(*arguments, tmp_path / "run")
    assert entries(tmp_path / "run") == {"pairs", "pairs/pairs.json", "pairs/shard-00000.safetensors"}
    shard = (tmp_path / "run" / "pairs" / "shard-00000.safetensors").stat().st_mtime_ns
    for name in ("run", "other"):
        main([str(argument) for argument in [*arguments, tmp_path / name]])
    assert (tmp_path / "run" / "pairs" / "shard-00000.safetensors").stat().st_mtime_ns == shard
    assert student_bytes(tmp_path / "run") == student_bytes(tmp_path / "other")


def test_a_resumed_run_stays_as_it_is(tiny_teacher, tmp_path):
    out = tmp_path / "run"
    arguments = ["distill", "--teacher", str(tiny_teacher), "--out", str(out), "--lambda-reg", "0", *RUN]
    main(arguments)
    for file in out.glob("checkpoints/*"):
        file.unlink()  # so that its first step is taken again
    before = entries(out)
    with no_memory():
        failed("distill", "--resume", out)
    assert entries(out) == before


@pytest.mark.parametrize("error", ["RuntimeError('shapes')", "ValueError('shapes')", "FloatingPointError('nan')"])
def test_a_method_that_raises_leaves_nothing(error, tiny_teacher, tmp_path):
    (tmp_path / "undone_method.py").write_text(METHOD.format(error=error))
    before = entries(tmp_path)
    with pytest.raises((SystemExit, RuntimeError)):
        main(["distill", "--teacher", str(tiny_teacher), "--method", "undone_method:undone", "--lambda-reg", "0", *RUN])
    assert {name for name in entries(tmp_path) - before if "__pycache__" not in name} == set()


def test_a_teacher_that_does_not_fit_leaves_nothing(idx_folder, tmp_path):
    with mock.patch.object(teaching, "denoising_loss", side_effect=NO_MEMORY):
        failed("teach", "--data", idx_folder, "--out", tmp_path / "run", "--model-channels", 16, "--warmup", 0, *CPU)
    assert entries(tmp_path) == set()


def test_pairs_that_do_not_fit_leave_nothing(tiny_teacher, tmp_path):
    with mock.patch.object(EDMDenoiser, "forward", side_effect=NO_MEMORY):
        failed("pairs", "--teacher", tiny_teacher, "--out", tmp_path / "pairs", "--pair-count", 6, *CPU)
    assert entries(tmp_path) == set()
