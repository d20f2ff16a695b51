"""LoRA adapters in a distillation, and runs that start from a student."""

import dataclasses
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from dmdistill.commands.distill import command
from dmdistill.commands.distill.command import distill
from dmdistill.commands.options import change
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.core.generators import Generator
from dmdistill.models.load import load_model, load_teacher
from helpers.configs import CPU
from helpers.runs import student_bytes

ADAPTERS = {"lora_student": 2, "lora_fake": 2}


def test_a_run_starts_from_a_student(settings):
    """With all its weights: after one step of a vanishing size the student is the earlier one."""
    first = distill(settings("first"))
    again = settings("again", start=str(settings("first").out), steps=1, lr=1e-12, ema_halflives=())
    student = distill(again)
    for mine, theirs in zip(student.network.parameters(), first.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def storages(*networks):
    """Every distinct storage of some networks' parameters, with its bytes."""
    tensors = [p.untyped_storage() for network in networks for p in network.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


def test_with_adapters_the_base_weights_are_shared_and_frozen(settings, monkeypatch):
    runs, set_up = [], command.set_up

    def record(*arguments, **options):
        runs.append(set_up(*arguments, **options))
        return runs[0]

    monkeypatch.setattr(command, "set_up", record)
    config = settings(**ADAPTERS)
    distill(config)
    run, before = runs[0], load_teacher(config.teacher)
    emas = [ema.network for ema in run.optimizers["generator"].emas]
    networks = [run.generator, run.fake, *emas]
    adapters = sum(p.nbytes for network in networks for name, p in network.named_parameters() if ".lora_" in name)
    base = sum(storages(run.teacher.network).values())
    assert sum(storages(run.teacher.network, *networks).values()) == base + adapters
    assert storages(run.teacher.network).items() <= storages(run.generator).items() & storages(run.fake).items()
    for name, tensor in before.network.state_dict().items():
        assert torch.equal(run.teacher.network.state_dict()[name], tensor)
    state = torch.load(config.out / "checkpoints" / "step-00000006.pt", weights_only=True)
    for update in state["updates"].values():
        assert all(".lora_" in name for weights in (update["network"], *update["emas"]) for name in weights)


@pytest.mark.parametrize("which", ["lora_student", "lora_fake"])
def test_one_of_the_two_may_have_adapters(which, settings):
    config = settings(steps=2, **{which: 2})
    distill(config)
    names = load_file(config.out / "student" / "model.safetensors")
    assert [".lora_" in name for name in names] == [which == "lora_student"] * len(names)
    assert set(load_teacher(config.teacher).network.state_dict()).isdisjoint(names) == (which == "lora_student")


def test_a_student_of_adapters_is_stored_without_its_base_weights_and_loads(
    settings, tiny_teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_teacher.parent)
    before = (tiny_teacher / "model.safetensors").read_bytes()
    config = settings(teacher=tiny_teacher.name, lr=0.03, **ADAPTERS)  # a path from here, which loads from anywhere
    student = distill(config)
    monkeypatch.chdir(tmp_path)
    assert (tiny_teacher / "model.safetensors").read_bytes() == before
    stored = load_file(config.out / "student" / "model.safetensors")
    assert all(".lora_" in name for name in stored)
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if ".lora_B." in name)
    described = json.loads((config.out / "student" / "config.json").read_text())
    assert (described["lora"], described["teacher"]) == ({"rank": 2, "alpha": 2}, str(tiny_teacher.resolve()))
    assert described["distilled"]["teacher"] == str(tiny_teacher.resolve())
    loaded = load_model(str(config.out))
    z, cond = loaded.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.images(z, cond), student.images(z, cond), rtol=1e-5, atol=1e-5)
    start = Generator(load_teacher(str(tiny_teacher)).denoiser)(z, cond)
    assert (loaded.images(z, cond) - start).abs().max() > 1e-3
    images = sample(SampleConfig(str(config.out), out=tmp_path / "x.png", count=3, compute=CPU))
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_starts_from_a_student_of_adapters(rank, settings):
    """A run with adapters starts from the student's; one without starts from the merged weights."""
    earlier = settings("first", lr=0.03, **ADAPTERS)
    first = distill(earlier)
    again = settings("again", start=str(earlier.out), lora_student=rank, steps=1, lr=1e-12, ema_halflives=())
    student = distill(again)
    z, cond = student.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student.images(z, cond), first.images(z, cond), rtol=1e-5, atol=1e-5)
    assert any(".lora_" in name for name in student.network.state_dict()) == (rank > 0)


@pytest.mark.parametrize(
    ("earlier", "match"),
    [(0, "{'rank': 2, 'alpha': 2}.* its lora is None"), (3, "{'rank': 2, 'alpha': 2}.* its lora is {'rank': 3")],
)
def test_adapters_of_another_rank_are_no_start(earlier, match, settings):
    first, again = settings("first", steps=2, lora_student=earlier), settings("again", lora_student=2)
    distill(first)
    again = dataclasses.replace(again, start=str(first.out))
    with pytest.raises(ValueError, match=match):
        distill(again)
    assert not again.out.exists()


@pytest.mark.parametrize("flag", ["lora_student", "lora_fake"])
def test_adapters_need_peft(flag, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=rf"^--{flag.replace('_', '-')} needs peft .*dmdistill\[diffusers\]"):
        distill(change(settings(), **{flag: 2}))


@pytest.mark.parametrize("changes", [{}, ADAPTERS], ids=["full", "adapters"])
def test_checkpointing_changes_no_student(changes, settings):
    files = []
    for checkpointing in ("none", "norms", "blocks"):
        config = settings(checkpointing, steps=2, checkpointing=checkpointing, **changes)
        distill(config)
        files.append(student_bytes(config.out))
    assert files[0] == files[1] == files[2]
