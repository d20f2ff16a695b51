"""A distillation divided among processes, and into parts, is the same distillation."""

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.setup import Job
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import configure
from helpers.process_group_tests import together

MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)
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
    plain = configure(
        DistillConfig,
        teacher=str(tiny_teacher),
        pair_count=20,
        steps=4,
        batch=8,
        batch_reg=4,
        warmup=2,
        ema_halflives=(2.0,),
        log_every=1,
        evaluate_every=2,
        report_images=0,
        save_every=2,
        grad_clip=0.5,
        ode=SolverOptions(solver_steps=2),
        compute=MACHINE,
    )
    return lambda name, **changes: change(plain, out=folder / name, **changes)


def run(config):
    distill(config)


def losses(folder):
    """Every figure of the log but the clock's."""
    named = {f"{row['step']} {name}": x for row in read_metrics(folder) for name, x in row.items() if name != "seconds"}
    return list(named), torch.tensor(list(named.values()))


def weights(folder, step=4):
    """Every weight of the networks and averages, and AdamW's moments."""
    updates = torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)["updates"]
    found = []
    for update in updates.values():
        for tensors in (update["network"], *update["emas"], *update["optimizer"]["state"].values()):
            found += [tensor.flatten() for tensor in tensors.values()]
    return torch.cat(found)


@pytest.fixture(scope="module")
def whole(settings):
    """The run of one process."""
    run(config := settings("whole"))
    return config.out


def same_but_for_rounding(folder, other):
    (names, found), (others, expected) = losses(folder), losses(other)
    assert names == others
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(weights(folder), weights(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_parts_change_rounding_alone(kind, settings, whole):
    """Losses, norms of gradients, health and weights of 1, 2 and 4 processes, and of parts, from one seed."""
    name = kind.replace(" ", "-")
    if kind != "plain":
        run(alone := settings(f"{name}-1", **KINDS[kind]))
        whole = alone.out
    for processes, parts in [(1, 2), (2, 1), (4, 1), (2, 2)] if kind == "plain" else [(2, 2)]:
        config = settings(f"{name}-{processes}-{parts}", accumulate=parts, **KINDS[kind])
        (_, printed), *others = together(processes, run, config)
        assert "distilling 4/4" in printed
        assert [silent for _, silent in others] == [""] * (processes - 1)
        same_but_for_rounding(config.out, whole)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--batch", "6", "--accumulate", "4"],
            "--batch 6 cannot be divided equally among 1 process of 4 microbatches each (--accumulate 4): expected a "
            "multiple of 4",
        ),
        (
            ["--batch", "8", "--batch-reg", "9", "--accumulate", "2"],
            "--batch-reg 9 cannot be divided equally among 1 process of 2 microbatches each (--accumulate 2): expected "
            "a multiple of 2",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(flags, line, error_line, tmp_path):
    assert error_line("distill", "--out", tmp_path / "run", *flags) == f"dmdistill: {line}\n"
    assert not (tmp_path / "run").exists()


def test_nor_among_processes(settings):
    """One says it; the others end without a word of their own."""
    (line, _), (other, _), (another, _) = together(3, refused_or_silent, settings("odd"))
    said = {line, other, another}
    assert said == {2, "--batch 8 cannot be divided equally among 3 processes: expected a multiple of 3"}
    assert not settings("odd").out.exists()


def refused_or_silent(config):
    try:
        run(config)
    except (ValueError, FloatingPointError) as error:
        return str(error)
    except SystemExit as end:
        return end.code or "refused without a word"
    return "not refused"


@pytest.mark.parametrize("parts", [1, 2])
def test_sharded_networks_learn_the_same(parts, settings, whole):
    """FSDP2: also the student, which is put together of all shares."""
    config = settings(f"sharded-{parts}", strategy="fsdp", accumulate=parts)
    together(2, run, config)
    same_but_for_rounding(config.out, whole)
    mine, theirs = (load_model(str(folder)).network.state_dict() for folder in (config.out, whole))
    torch.testing.assert_close(dict(mine), dict(theirs), rtol=1e-4, atol=1e-5)


def run_until(config, step, rank):
    """SIGTERM comes to one process during this step."""
    iterate = Job.iterate

    def told(self, now):
        if now == step and self.run.processes.rank == rank:
            signal.raise_signal(signal.SIGTERM)
        return iterate(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "iterate", told)
        run(config)


def test_a_run_goes_on_with_any_number_of_processes(settings, whole):
    """2, stopped after the first step; 4 sharded, stopped after the second; 1; 2 sharded: as if never stopped."""
    config = settings("moved")
    (_, printed), (_, silent) = together(2, run_until, config, 0, 1)
    assert printed.endswith(f"stopped after step 1, saved; go on with: dmdistill distill --resume {config.out}\n")
    assert silent == ""
    again = change(config, resume=config.out)
    together(4, run_until, dataclasses.replace(again, strategy="fsdp"), 1, 2)
    run_until(again, 2, 0)
    together(2, run, dataclasses.replace(again, strategy="fsdp"))
    same_but_for_rounding(config.out, whole)


def test_all_draw_what_is_measured_on_the_way(tmp_path, tiny_teacher):
    """The same Frechet distance by two processes as by one, the same best state, one file of it."""
    teacher = load_teacher(str(tiny_teacher))
    teacher.config["feature_extractor"] = "fashion-classifier"
    save_model(tmp_path / "judged", teacher, card="")
    found, first = [], []
    for processes, strategy in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        config = configure(
            DistillConfig,
            teacher=str(tmp_path / "judged"),
            out=tmp_path / f"{processes}-{strategy}",
            strategy=strategy,
            lambda_reg=0.0,
            steps=2,
            batch=2,
            ema_halflives=(2.0,),
            log_every=1,
            sample_every=1,
            evaluate_every=1,
            evaluate_images=520,  # of which 500 are drawn at once
            report_images=0,
            compute=MACHINE,
        )
        together(processes, run, config)
        figures = [row["frechet_ema2"] for row in read_metrics(config.out)]
        best = sorted(file.name for file in (config.out / "checkpoints").glob("best-*"))
        found.append((best, sorted(os.listdir(config.out / "samples")), len(figures)))
        first = first or figures
        assert figures == pytest.approx(first, rel=1e-4)
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 1


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.setup import Job

iterate = Job.iterate

def killed(self, step):
    if step == 3 and self.run.processes.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        self.trainer.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(self, step)

Job.iterate = killed
distill(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


def torchrun(script, count, *flags, restarts=0):
    """A script of so many processes, started as a user does; what it printed, and its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["--max-restarts", str(restarts), str(script), *map(str, flags)]
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow  # torchrun and its processes import torch five times
def test_torchrun_starts_a_killed_process_anew_and_the_run_goes_on(settings, whole, tmp_path):
    """From the last checkpoint, by the same command, to the same student."""
    (tmp_path / "killed.py").write_text(KILLED)
    config = settings("killed")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    done = torchrun(tmp_path / "killed.py", 2, tmp_path / "config", restarts=1)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "dmdistill" in line or "rror" in line]
    assert done.stdout.count("distilling 4/4") == 1
    same_but_for_rounding(config.out, whole)


@pytest.mark.slow
def test_torchrun_shows_one_line_of_what_is_wrong(whole, tmp_path):
    """Of all processes, one says it."""
    (tmp_path / "plain.py").write_text("from dmdistill.commands.cli import main\nmain()\n")
    done = torchrun(tmp_path / "plain.py", 2, "distill", "--out", whole, "--device", "cpu")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("dmdistill: ")]
    assert lines == [f"dmdistill: {whole} already exists: choose another --out, or resume it by --resume {whole}"]


def spoilt(config, step):
    """The second process's noise has a NaN at this step. What every process is told."""
    batch = Job.batch

    def bad(self, now):
        found = batch(self, now)
        if now == step and self.run.processes.rank == 1:
            found.z[0, 0, 0, 0] = torch.nan
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "batch", bad)
        return refused_or_silent(config)


@pytest.mark.parametrize(("strategy", "step"), [("ddp", 0), ("ddp", 3), ("fsdp", 3)])
def test_all_stop_where_one_meets_nan(strategy, step, settings):
    """At once while there is no checkpoint; later they go back to the last one and come to the same step again."""
    config = settings(f"nan-{strategy}-{step}", strategy=strategy)
    answers = [answer for answer, _ in together(2, spoilt, config, step)]
    (line,) = (answer for answer in answers if answer != 2)
    assert line.startswith(
        f"step {step}: loss_kl is nan: the generator answers with NaN or infinity for 1 of 4 samples"
    )
    assert "(process 1)" in line
    assert [row["step"] for row in read_metrics(config.out)] == [*range(1, step + 1)]
    assert torch.isfinite(weights(config.out, step)).all()


def make_some(config):
    return len(pairs(config))


def test_pairs_are_made_by_all(tiny_teacher, tmp_path):
    """Each shard by one process, byte for byte the same as by one alone."""
    config = configure(PairsConfig, teacher=str(tiny_teacher), count=11, shard_size=2, batch=3, compute=MACHINE)
    config = change(config, ode=SolverOptions(solver_steps=2))
    make_some(change(config, out=tmp_path / "one"))
    (first, printed), (second, silent) = together(2, make_some, change(config, out=tmp_path / "two"))
    assert (first, second, silent) == (11, 11, "")
    assert printed.endswith(f"11 pairs in {tmp_path / 'two'}\n")
    for file in (tmp_path / "one").glob("*.safetensors"):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(settings, whole):
    run(config := settings("compiled", compile=True))
    same_but_for_rounding(config.out, whole)
    together(2, run, config := settings("compiled-2", compile=True))
    same_but_for_rounding(config.out, whole)
