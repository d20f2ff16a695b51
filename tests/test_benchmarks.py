"""The benchmark of a step measures two implementations of one algorithm, and optimisations that keep its losses."""

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmdistill.commands.options import change
from dmdistill.data.pairs import open_pairs
from dmdistill.data.shards import ShardLayout
from dmdistill.models.load import load_teacher

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import growth
import limits
import pairs_at_scale
import plan_memory
import resident
import step
import step_cases
import step_tricks

CPU = {"device": "cpu", "precision": "fp32", "batch": 3}


@pytest.fixture(autouse=True)
def tiny_cases(tiny_teacher, monkeypatch):
    """The tiny teacher, with guidance and without; learning rates that move it in the first step."""

    def case(guidance):
        return step_cases.Case(lambda: dataclasses.replace(load_teacher(str(tiny_teacher)), guidance=guidance), 3)

    monkeypatch.setitem(step_cases.CASES, "tiny", case(1.0))
    monkeypatch.setitem(step_cases.CASES, "guided", case(3.0))
    config = step.Setting.config.fget
    fast = {"lr": 1e-3, "lr_fake": 1e-3, "warmup": 1}
    monkeypatch.setattr(step.Setting, "config", property(lambda self: change(config(self), **fast)))


def test_a_process_measures_its_own_memory_not_its_parents():
    large = torch.ones(75_000_000)
    question = "import sys; sys.path.insert(0, sys.argv[1]); import resident; print(resident.peak_resident_size())"
    assert (
        resident.run_json("-c", question, str(Path(resident.__file__).parent), threads=1)
        < 100e6
        < large.nbytes
        < resident.peak_resident_size()
    )


@pytest.mark.parametrize("name", ["tiny", "guided"])
@pytest.mark.parametrize("fake_steps", [1, 5])
def test_the_plain_implementation_and_ours_have_the_same_losses(name, fake_steps):
    """Of three iterations, each after the updates of the one before."""
    plain, ours = (step.Setting(name, kind, fake_steps=fake_steps, **CPU) for kind in ("plain", "ours"))
    assert step.loss_differences(plain, ours, count=3)[0] < 1e-3
    assert step.loss_differences(plain, ours, count=1)[0] < 2e-5


def test_in_bf16_the_losses_differ_by_its_rounding():
    plain, ours = (step.Setting("tiny", kind, **CPU) for kind in ("plain", "ours"))
    assert 1e-4 < step.loss_differences(plain, dataclasses.replace(ours, precision="bf16"), count=1)[0] < 0.1


def test_both_take_the_same_operations_and_ours_less_memory():
    plain, ours = (step.Setting("guided", kind, fake_steps=2, **CPU) for kind in ("plain", "ours"))
    counted = [step.count_cost(one) for one in (plain, ours)]
    assert counted[0]["flops"] == counted[1]["flops"]
    assert counted[0]["tensors"] > counted[1]["tensors"]
    with step.build(ours) as (implementation, _):
        assert step.operations(implementation, ours) == counted[1]["flops"]


@pytest.mark.parametrize("trick", step_tricks.TRICKS)
def test_without_an_optimisation_the_losses_are_the_same(trick):
    """The losses inside; and outside again, bit for bit."""
    setting = step.Setting("guided", "ours", **(CPU | {"precision": "bf16"}))
    found = []
    for context in (nullcontext, step_tricks.TRICKS[trick]):
        with step.build(setting) as (ours, _):
            with context(ours):
                inside = step.steps(ours, setting, count=1)
            with step.build(setting) as (fresh, _):
                fresh.generator.load_state_dict(ours.generator.state_dict())
                fresh.fake.load_state_dict(ours.fake.state_dict())
                assert step.steps(ours, setting, count=1) == step.steps(fresh, setting, count=1)
        found.append(inside[0])
    for name in ("loss_reg", "loss_fake"):  # the other one is 0, as the fake score is the teacher yet
        assert found[1][name] == pytest.approx(found[0][name], rel=0.1)


def test_a_plans_memory_is_that_of_the_tensors_of_real_steps():
    config = plan_memory.configuration("tiny", 3, "norms")
    planned, tensors = (plan_memory.count_cost(config, data=data) for data in (False, True))
    assert planned == pytest.approx(tensors, rel=0.01)


def test_the_operations_of_a_convolution_agree_with_torchs_counter():
    work, operations = limits.convolution(3, None)
    with FlopCounterMode(display=False) as counter:
        work()
    assert counter.get_total_flops() == operations
    assert limits.convolution_share(work) > 0.5
    assert limits.convolution_share(lambda: torch.randn(999).exp()) == 0


def test_a_sparse_set_of_pairs_is_read_as_a_real_one(tmp_path):
    layout = ShardLayout(tmp_path, 11, 4)
    pairs_at_scale.write_sparse_set(layout, (2, 3, 5))
    pairs = open_pairs(tmp_path)
    assert pairs.shape == (2, 3, 5)
    assert not any(tensor.any() for tensor in pairs[range(11)])
    pairs.shards.layout.file(2).write_bytes(pairs.shards.layout.file(2).read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged"):
        pairs[[10]]


def test_rows_of_growth_are_measured_once(tmp_path, monkeypatch, capsys):
    """A row that is there is kept; the table has the exponent of the power law."""
    found = growth.measure(batch=2, resolution=8, channels=16)
    assert found["seconds"] > 0
    assert found["parameters"] > 1e5
    asked = []

    def run_json(_script, _flag, setting, *, threads):
        asked.append(json.loads(setting))
        return found | {"seconds": 0.5 * asked[-1]["batch"] ** 2}

    monkeypatch.setattr(growth, "run_json", run_json)
    axes = {"batch": [2, 8, 32]}
    growth.measure_missing(tmp_path / "rows.jsonl", {"batch": [8]})
    rows = growth.measure_missing(tmp_path / "rows.jsonl", axes)
    growth.print_table(rows, axes)
    growth.draw(tmp_path / "rows.png", rows, axes)
    assert [setting["batch"] for setting in asked] == [8, 2, 32]
    assert capsys.readouterr().out.count("| 2.00 |") == 2
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert growth.measure_setting({"pairs": 3}).keys() == {"seconds", "bytes"}
