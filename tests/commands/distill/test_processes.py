"""A distillation divided among processes and into microbatches is the same distillation."""

import os
import pickle
import shutil
import signal

import pytest
import torch

from dmdistill.commands.distill.batches import BatchSource
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.signals import TrainingStopped
from helpers.configs import CPU, configure, small_distillation
from helpers.process_group_tests import together
from helpers.runs import assert_equal_to_rounding, weights
from helpers.torchrun import KILLED, torchrun

KINDS = {
    "plain": {},
    "pairs matched, three updates of the fake score": {"match_pairs": True, "fake_steps": 3},
    "no pairs": {"lambda_reg": 0.0},
    "regression, then both": {"match_from": 0.5, "fake_from": 0.25, "regress_until": 0.75},
}


@pytest.fixture(scope="module")
def settings(tiny_teacher, tmp_path_factory):
    """A distillation of four steps, each logged."""
    folder = tmp_path_factory.mktemp("runs")
    plain = {"pair_count": 20, "steps": 4, "batch": 8, "ema_halflives": (2.0,), "solver_steps": 2, "grad_clip": 0.5}
    plain |= {"teacher": str(tiny_teacher), "evaluate_every": 2, "save_every": 2, "sample_every": 250}
    return lambda name, **changes: small_distillation(**plain | {"out": folder / name} | changes)


def run(config):
    distill(config)


@pytest.fixture(scope="module")
def complete(settings):
    """The run of one process."""
    run(config := settings("complete"))
    return config.out


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_microbatches_change_results_by_rounding_only(kind, settings, complete):
    """Losses, norms of gradients, diagnostics and weights of 1, 2 and 4 processes and of microbatches, by one seed."""
    name = kind.replace(" ", "-")
    if kind != "plain":
        run(single := settings(f"{name}-1", **KINDS[kind]))
        complete = single.out
    for processes, microbatches in [(1, 2), (2, 1), (4, 1), (2, 2)] if kind == "plain" else [(2, 2)]:
        config = settings(f"{name}-{processes}-{microbatches}", accumulate=microbatches, **KINDS[kind])
        (_, printed), *others = together(processes, run, config)
        assert "distilling 4/4" in printed
        assert [text for _, text in others] == [""] * (processes - 1)
        assert_equal_to_rounding(config.out, complete)


LABELS = {
    "labels of augmentations that nobody gives": {},
    "and adapters": {"lora_student": 2, "lora_fake": 2},
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_network_with_labels_of_augmentations_trains_in_two_processes(kind, settings, augmented_teacher):
    """DDP waits for the gradient of every trained weight."""
    if "lora_fake" in LABELS[kind]:
        pytest.importorskip("peft")
    one, two = (settings(f"{kind}-{n}", teacher=str(augmented_teacher), **LABELS[kind]) for n in (1, 2))
    run(one)
    together(2, run, two)
    assert_equal_to_rounding(two.out, one.out)


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--batch", "6", "--accumulate", "4"], ["--batch 6 ", "--accumulate 4", "a multiple of 4"]),
        (
            ["--batch", "8", "--batch-reg", "9", "--accumulate", "2"],
            ["--batch-reg 9 ", "--accumulate 2", "a multiple of 2"],
        ),
        (["--sharding-group", "2"], ["--sharding-group with --strategy ddp", "expected --strategy fsdp"]),
        (["--offload-teacher"], ["--offload-teacher with --strategy ddp", "expected --strategy fsdp"]),
        (["--strategy", "fsdp", "--sharding-group", "2"], ["--sharding-group 2 with 1 process,", "divides 1"]),
        (
            ["--strategy", "fsdp", "--offload-teacher", "--lora-fake", "2"],
            ["--offload-teacher with adapters", "leave out --offload-teacher"],
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(flags, texts, error_line, tmp_path):
    line = error_line("distill", "--out", tmp_path / "run", *flags)
    assert all(text in line for text in texts)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_divided_among_processes_is_refused(settings):
    """One process raises the error; the others end without a message of their own."""
    results = {result for result, _ in together(3, error_or_exit_code, settings("odd"))}
    (line,) = results - {2}
    assert "--batch 8 " in line
    assert "3 processes" in line
    assert len(results) == 2
    assert not settings("odd").out.exists()


def error_or_exit_code(config):
    try:
        run(config)
    except (ValueError, FloatingPointError) as error:
        return str(error)
    except SystemExit as end:
        return end.code or "no exit code"
    return "no error"


@pytest.mark.parametrize("microbatches", [1, 2])
def test_sharded_networks_learn_the_same(microbatches, settings, complete):
    """FSDP2: also the student, which is gathered from all shards."""
    config = settings(f"sharded-{microbatches}", strategy="fsdp", accumulate=microbatches)
    together(2, run, config)
    assert_equal_to_rounding(config.out, complete)
    mine, theirs = (load_model(str(folder)).network.state_dict() for folder in (config.out, complete))
    torch.testing.assert_close(dict(mine), dict(theirs), rtol=1e-4, atol=1e-5)


def run_until(config, step, rank):
    """SIGTERM comes to one process during this step."""
    iterate = Distillation.iterate

    def interrupt(self, now):
        if now == step and self.parallel.processes.rank == rank:
            signal.raise_signal(signal.SIGTERM)
        return iterate(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "iterate", interrupt)
        with pytest.raises(TrainingStopped, match="15"):
            run(config)


def test_a_run_is_resumed_by_any_number_of_processes(settings, complete):
    """2, stopped after the first step; 4 sharded, stopped after the second; 1; 2 sharded."""
    config = settings("moved")
    (_, printed), (_, other) = together(2, run_until, config, 0, 1)
    assert printed.endswith(f"dmdistill distill --resume {config.out}\n")
    assert "stopped after step 1," in printed
    assert other == ""
    again = change(config, resume=config.out)
    together(4, run_until, change(again, strategy="fsdp"), 1, 2)
    run_until(again, 2, 0)
    together(2, run, change(again, strategy="fsdp"))
    assert_equal_to_rounding(config.out, complete)


def test_processes_share_the_images_of_a_measurement(tmp_path, tiny_teacher):
    """Two processes measure the same Frechet distance as one, keep the same best state, and write it once."""
    teacher = load_teacher(str(tiny_teacher))
    teacher.config["feature_extractor"] = "fashion-classifier"
    save_model(tmp_path / "judged", teacher, card="")
    found, first = [], []
    for processes, strategy in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        config = small_distillation(
            teacher=str(tmp_path / "judged"),
            out=tmp_path / f"{processes}-{strategy}",
            strategy=strategy,
            lambda_reg=0.0,
            steps=2,
            batch=2,
            ema_halflives=(2.0,),
            sample_every=1,
            evaluate_every=1,
            evaluate_images=520,  # of which 500 are generated at once
        )
        together(processes, run, config)
        distances = [row["frechet_ema2"] for row in read_metrics(config.out)]
        best = sorted(file.name for file in (config.out / "checkpoints").glob("best-*"))
        found.append((best, sorted(os.listdir(config.out / "samples")), len(distances)))
        first = first or distances
        assert distances == pytest.approx(first, rel=1e-4)
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 1


@pytest.mark.slow  # torchrun and its processes import torch five times
def test_a_run_whose_process_was_killed_is_resumed_by_torchrun(settings, complete, tmp_path):
    """From the last checkpoint, by the same command, to the same student."""
    (tmp_path / "killed.py").write_text(KILLED)
    config = settings("killed")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    done = torchrun(tmp_path / "killed.py", 2, tmp_path / "config", restarts=1)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "dmdistill" in line or "rror" in line]
    assert done.stdout.count("distilling 4/4") == 1
    assert_equal_to_rounding(config.out, complete)


@pytest.mark.slow
def test_an_error_under_torchrun_is_one_line(complete, tmp_path):
    """One of the processes prints it."""
    (tmp_path / "plain.py").write_text("from dmdistill.commands.cli import main\nmain()\n")
    done = torchrun(tmp_path / "plain.py", 2, "distill", "--out", complete, "--device", "cpu")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("dmdistill: ")]
    (line,) = lines
    assert str(complete) in line
    assert f"--resume {complete}" in line


def train_with_nan(config, step):
    """The second process's noise has a NaN at this step. Returns the error of this process, or its exit code."""
    batch = BatchSource.batch

    def spoil(self, now, needs):
        clean = batch(self, now, needs)
        if now == step and self.processes.rank == 1:
            clean.z[0, 0, 0, 0] = torch.nan
        return clean

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSource, "batch", spoil)
        return error_or_exit_code(config)


@pytest.mark.parametrize(("strategy", "step"), [("ddp", 0), ("ddp", 3), ("fsdp", 3)])
def test_all_stop_where_one_meets_nan(strategy, step, settings):
    """At once while there is no checkpoint; later they return to the last one and repeat the steps."""
    config = settings(f"nan-{strategy}-{step}", strategy=strategy)
    (line,) = {result for result, _ in together(2, train_with_nan, config, step)} - {2}
    assert line.startswith(f"step {step}: the generator's loss is nan")
    assert "the generator returned NaN or infinity for 1 of " in line
    assert "(process 1)" in line
    assert [row["step"] for row in read_metrics(config.out)] == [*range(1, step + 1)]
    if step:
        assert torch.isfinite(weights(config.out, step - 1)).all()  # the last checkpoint
    else:  # nothing was trained that could be resumed
        assert not (config.out / "checkpoints").exists()


def count_pairs(config):
    return len(pairs(config))


def test_processes_make_pairs_together(tiny_teacher, tmp_path):
    """Each shard is made by one of them, byte for byte as by a single process."""
    config = configure(PairsConfig, teacher=str(tiny_teacher), pair_count=11, shard_size=2, pair_batch=3, compute=CPU)
    config = change(config, solver_steps=2)
    count_pairs(change(config, out=tmp_path / "one"))
    (first, printed), (second, other) = together(2, count_pairs, change(config, out=tmp_path / "two"))
    assert (first, second, other) == (11, 11, "")
    assert printed.endswith(f"11 pairs in {tmp_path / 'two'}\n")
    for file in (tmp_path / "one").glob("*.safetensors"):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(settings, complete):
    run(config := settings("compiled", compile=True))
    assert_equal_to_rounding(config.out, complete)
    together(2, run, config := settings("compiled-2", compile=True))
    assert_equal_to_rounding(config.out, complete)
