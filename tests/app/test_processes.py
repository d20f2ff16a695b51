"""A distillation divided among processes, and into parts, is the same distillation."""

import dataclasses
import signal

import pytest
import torch

from dmdistill.app.config import Distill, Machine, Solver
from dmdistill.app.distill import distill
from dmdistill.app.job import Job
from dmdistill.teachers.load import load_model
from dmdistill.training.trainer import read_metrics
from together import together

MACHINE = Machine(device="cpu", precision="fp32", threads=1)
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
    plain = Distill(
        teacher=str(tiny_teacher),
        pair_count=20,
        steps=4,
        batch=8,
        batch_reg=4,
        warmup=2,
        halflives=(2.0,),
        log_every=1,
        evaluate_every=2,
        report_images=0,
        save_every=2,
        clip=0.5,
        ode=Solver(solver_steps=2),
        machine=MACHINE,
    )
    return lambda name, **changes: dataclasses.replace(plain, out=folder / name, **changes)


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
        for tensors in (update["network"], *update["averages"], *update["optimiser"]["state"].values()):
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
            "--batch 6 cannot be divided equally among 1 process of 4 parts each (--accumulate 4): expected a "
            "multiple of 4",
        ),
        (
            ["--batch", "8", "--batch-reg", "9", "--accumulate", "2"],
            "--batch-reg 9 cannot be divided equally among 1 process of 2 parts each (--accumulate 2): expected a "
            "multiple of 2",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(flags, line, line_of, tmp_path):
    assert line_of("distill", "--out", tmp_path / "run", *flags) == f"dmdistill: {line}\n"
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
    except ValueError as error:
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
    again = dataclasses.replace(config, resume=config.out)
    together(4, run_until, dataclasses.replace(again, strategy="fsdp"), 1, 2)
    run_until(again, 2, 0)
    together(2, run, dataclasses.replace(again, strategy="fsdp"))
    same_but_for_rounding(config.out, whole)
