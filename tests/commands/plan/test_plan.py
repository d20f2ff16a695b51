"""`dmdistill plan`: counts against hand counts, against tensors with data, and the sums of its parts."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from torch import nn

from dmdistill.commands.distill.setup import Job
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.plan import speed as calibration
from dmdistill.commands.plan.command import plan
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.plan.dry_run import Rehearsal, rehearsal
from dmdistill.commands.plan.tensor_ledger import FakeTensors
from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from helpers.configs import configure

MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)
WEIGHTS = ("teacher", "generator", "fake score", "averages")


@pytest.fixture
def settings(monkeypatch):
    """A plan of six steps, reckoned, for a teacher of two convolutions where none is named."""
    monkeypatch.setattr(
        "dmdistill.commands.plan.command.load_teacher", lambda name: layered() if not name else load_teacher(name)
    )

    def build(**changes):
        base = configure(
            PlanConfig,
            teacher="",
            pair_count=12,
            steps=6,
            batch=6,
            batch_reg=4,
            report_images=20,
            ode=SolverOptions(solver_steps=3),
            peak_tflops=2.0,
            utilisation=0.25,
            compute=MACHINE,
        )
        return change(base, **changes)

    return build


class Layers(nn.Module):
    """Two convolutions, C -> K -> C channels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x, t=None, cond=None):
        return self.second(self.first(x).relu())


class Told(nn.Module):
    """Layers that are told nothing."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, t, cond):
        return self.layers(x)


class LayersBlock(Layers):
    """The same, which --checkpointing blocks finds by its name."""


def layered(channels=3, hidden=7, height=6, width=5):
    return Teacher(name="layers", denoiser=X0Denoiser(Layers(channels, hidden), EDM()), shape=(channels, height, width))


def counted(config, teacher, **changes):
    with rehearsal(change(config, **changes), teacher, data=False) as job:
        return {phase.name: job.count(phase) for phase in job.course.phases}


@pytest.mark.parametrize("fake_steps", [1, 3])
def test_operations_are_those_of_a_hand_count(fake_steps, settings):
    """A convolution F = 2 C K 9 H W an image: once forward, once for its weights, once for what it was given."""
    b, r, f = 6, 4, 2 * 3 * 7 * 9 * 6 * 5
    trained, asked = 2 * f + 3 * f, 2 * f  # nothing is handed further back than the first layer's weights
    found = counted(settings(fake_steps=fake_steps), layered())["matching, regression"].flops
    fresh = (fake_steps - 1) * b
    assert found == (b + r) * trained + 2 * b * asked + fake_steps * b * trained + fresh * asked


def test_memory_of_weights_is_theirs(settings):
    """Three networks, two averages; gradients and AdamW's states of the two that learn, with a number each."""
    memory = counted(settings(ema_halflives=(1.0, 2.0)), layered())["matching, regression"].memory
    numbers = [p.numel() for p in layered().network.parameters()]
    size = 4 * sum(numbers)
    assert [memory[part] for part in WEIGHTS] == [size, size, size, 2 * size]
    assert memory["optimiser"] == 2 * (2 * size + 4 * len(numbers))


@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_without_data_the_count_is_that_of_real_tensors(checkpointing, settings, tiny_teacher):
    config = settings(checkpointing=checkpointing, teacher=str(tiny_teacher))
    sums = []
    for data in (False, True):
        with rehearsal(config, load_teacher(config.teacher), data=data, ledger=True) as job:
            found = job.count(job.course.phases[-1])
        sums.append((sum(found.memory.values()), found.flops))
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-3 if checkpointing == "none" else 0.05)
    assert sums[0][1] == sums[1][1]


def test_twice_the_batch_is_twice_the_activations_and_operations(settings):
    config = settings(lambda_reg=0.0)
    once, twice = (counted(config, layered(), batch=batch)["matching"] for batch in (320, 640))
    assert twice.flops == 2 * once.flops
    assert twice.memory["activations"] == pytest.approx(2 * once.memory["activations"], rel=0.02)
    for part in (*WEIGHTS, "optimiser"):
        assert twice.memory[part] == once.memory[part]


def test_checkpointing_trades_memory_for_operations(settings):
    teacher = layered()
    blocks = nn.Sequential(*[LayersBlock(3, 7) for _ in range(4)])
    teacher.denoiser.net = Told(blocks)
    plain, recomputed = (
        counted(settings(batch=320), teacher, checkpointing=checkpointing)["matching, regression"]
        for checkpointing in ("none", "blocks")
    )
    assert recomputed.memory["activations"] < plain.memory["activations"]
    assert recomputed.flops > plain.flops


def test_adapters_shrink_the_optimiser_and_share_weights(settings, tiny_teacher):
    pytest.importorskip("peft")
    config, teacher = settings(), load_teacher(str(tiny_teacher))
    whole = counted(config, teacher)["matching, regression"].memory
    adapted = counted(config, teacher, lora_student=2, lora_fake=2)["matching, regression"].memory
    assert adapted["teacher"] == whole["teacher"]
    for part in ("generator", "fake score", "averages", "optimiser"):
        assert adapted[part] < whole[part] / 2


class Reads(nn.Module):
    """A prompt of 5 numbers, brought to the three channels of an image and added to what the layers make of it."""

    def __init__(self):
        super().__init__()
        self.layers, self.read = Layers(3, 7), nn.Linear(5, 3)

    def forward(self, x, t, cond):
        return self.layers(x) + self.read(cond.tensors["prompt_embeds"]).mean(1)[:, :, None, None]


def reader(device="cpu"):
    """A teacher told two prompts of 4 words."""
    shard, empty = ({"prompt_embeds": torch.zeros(rows, 4, 5)} for rows in (2, 1))
    with torch.device(device):
        denoiser = X0Denoiser(Reads(), EDM())
    return Teacher(name="reader", denoiser=denoiser, shape=(3, 6, 5), conditions=PromptSet(["a", "b"], [shard], empty))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_prompts_are_counted_as_those_with_data(guidance, settings):
    config, told = settings(), dataclasses.replace(reader(), guidance=guidance)
    found = []
    for data in (False, True):
        with rehearsal(config, told, data=data, ledger=True) as job:
            found.append(job.count(job.course.phases[-1]))
    assert found[0].flops == found[1].flops
    assert sum(found[0].memory.values()) == pytest.approx(sum(found[1].memory.values()), rel=0.02)


def test_a_teacher_without_weights_is_planned_as_one_with(settings, monkeypatch):
    """On the meta device, where the largest takes no room."""
    found = []
    for device in ("cpu", "meta"):
        monkeypatch.setattr("dmdistill.commands.plan.command.load_teacher", lambda _, device=device: reader(device))
        found.append(plan(settings()).figures())
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="reader is on the meta device and cannot be timed: give --peak-tflops"):
        plan(settings(peak_tflops=None))


def test_rounded_weights_leave_no_others_behind(settings):
    """Of a teacher that keeps its weights in bf16 the fp32 ones go, on the meta device too."""
    found = []
    for device in ("cpu", "meta"):
        teacher = reader(device)
        teacher.denoiser.precision = torch.bfloat16
        found.append(counted(settings(), teacher)["matching, regression"].memory)
    assert found[0] == found[1]
    assert found[0]["teacher"] < 0.6 * found[0]["generator"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_networks_share_their_copies_share(device):
    layer = nn.Linear(3, 5, device=device)
    mode = FakeTensors()
    one, other = mode.copy_network(nn.Sequential(layer)), mode.copy_network(nn.Sequential(layer, nn.ReLU()))
    assert one[0].weight is other[0].weight
    assert one[0].weight.device.type == "cpu"


def test_the_parts_add_up(settings, tmp_path):
    config = settings(json=tmp_path / "plan.json", match_from=0.5, processes=2)
    estimate = plan(config)
    figures = json.loads(config.json.read_text())
    assert figures["memory_peak"] == max(sum(parts.values()) for parts in estimate.memory.values())
    assert figures["flops"] == pytest.approx(sum(one["flops"] for one in figures["work"]))
    assert figures["hours"] == pytest.approx(sum(one["seconds"] for one in figures["work"]) / 3600)
    assert figures["device_hours"] == pytest.approx(2 * figures["hours"])
    assert (figures["batch"], figures["batch_reg"]) == (3, 2)
    names = [one["name"] for one in figures["work"]]
    steps = ["3 steps: regression", "3 steps: matching, regression"]
    assert names == ["12 pairs", *steps, "1 measurements", "report of 20 images"]
    assert [one["flops"] for one in figures["work"]][2] == 3 * 2 * figures["flops_per_step"]["matching, regression"]


def test_latents_are_drawn_by_the_batch_of_all_processes(settings, monkeypatch):
    """As many at once as the run draws, and in its probe: 16 of 32, not 4."""
    latents = dataclasses.replace(layered(), autoencoder=nn.Identity())
    monkeypatch.setattr("dmdistill.commands.plan.command.load_teacher", lambda _: latents)
    one, eight = (plan(settings(batch=32, batch_reg=8, processes=processes)) for processes in (1, 8))
    drawing = [estimate.memory["drawing images"] for estimate in (one, eight)]
    assert drawing[0]["activations"] == drawing[1]["activations"]
    assert one.work[2] == dataclasses.replace(eight.work[2], seconds=one.work[2].seconds)  # measurements
    asked, ask = [], Rehearsal.ask_teacher
    monkeypatch.setattr(Rehearsal, "ask_teacher", lambda job, images: asked.append(images) or ask(job, images))
    plan(settings(batch=32, batch_reg=8, processes=8, peak_tflops=None))
    assert set(asked) == {16}


def test_fewer_pairs_than_a_batch_are_all_of_it(settings):
    estimate = plan(settings(pair_count=4, batch_reg=16, processes=2))
    assert estimate.batch_reg == 2


def test_a_plan_needs_no_logger(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    plan(settings(log_to="wandb"))


def test_seconds_of_a_stated_device_are_operations_by_its_speed(settings):
    estimate = plan(settings(processes=2))
    for one in estimate.work:
        assert one.seconds == pytest.approx(one.flops / (2.0e12 * 0.25 * 2))


def test_pairs_are_the_solvers_evaluations(settings):
    """Heun's 3 steps are 5 evaluations; of 20 images to report on 12 are the pairs' and 8 fresh."""
    f = 2 * 3 * 7 * 9 * 6 * 5
    pairs, *_, report = plan(settings()).work
    assert pairs.flops == 12 * 5 * 2 * f
    assert report.flops == (8 * 5 + 20) * 2 * f


def test_guidance_doubles_the_pairs(settings, tiny_teacher):
    plain, guided = (
        plan(settings(teacher=str(tiny_teacher), ode=SolverOptions("ddim", 3, g))).work[0] for g in (1.0, 2.0)
    )
    assert guided.flops == 2 * plain.flops


@pytest.mark.parametrize("seconds", [0.01, 0.02])
def test_timed_steps_make_the_hours(seconds, settings, monkeypatch):
    """A step that takes so long, and an evaluation of all images drawn at once: the rest is multiplication."""
    monkeypatch.setattr(calibration, "timed", lambda work, device: seconds)
    estimate = plan(settings(peak_tflops=None))
    pairs, steps, *_ = estimate.work
    assert steps.seconds == pytest.approx(6 * seconds)
    assert pairs.seconds == pytest.approx(12 * 5 * seconds / 500)
    assert "share" not in estimate.speed


def test_parts_halve_the_activations(settings):
    """But for images and noise, which are of the whole batch; and each part is timed with an image at least."""
    config = settings(lambda_reg=0.0, batch=640)
    one, two, four = (counted(config, layered(), accumulate=parts)["matching"] for parts in (1, 2, 4))
    first, second = (
        more.memory["activations"] - less.memory["activations"] for more, less in ((one, two), (two, four))
    )
    assert first == pytest.approx(2 * second, rel=1e-3)
    assert first > 0.4 * one.memory["activations"]
    assert one.flops == two.flops == four.flops
    assert plan(settings(accumulate=2, peak_tflops=None)).hours > 0


def test_sharded_networks_are_said_by_part_and_before(settings):
    """Alone, nothing is shared out; DDP gathers nothing and shards nothing."""
    whole = plan(settings()).memory
    assert plan(settings(strategy="fsdp")).memory.keys() == whole.keys()
    assert plan(settings(processes=2)).host == plan(settings(strategy="fsdp")).host == 0
    estimate = plan(settings(processes=2, strategy="fsdp"))
    sharded, step = estimate.memory, "matching, regression"
    assert 3 <= estimate.host / whole[step]["teacher"] < 3.1  # the teacher and two copies
    assert sharded["pairs, not sharded"]["teacher"] == whole[step]["teacher"]
    assert sharded["pairs, not sharded"]["activations"] == sharded["drawing images"]["activations"]
    assert "pairs, not sharded" not in plan(settings(processes=2, strategy="fsdp", lambda_reg=0.0)).memory
    assert sharded[step]["gathered"] > 0
    assert sharded["drawing images"]["gathered"] == 2 * padded(layered().network, 2)
    for part in WEIGHTS:
        assert whole[step][part] / 2 < sharded[step][part] < whole[step][part]  # 3 and 7 rows are padded


def padded(network, world_size):
    return 4 * sum(world_size * -(-len(one) // world_size) * one[0].numel() for one in network.parameters())


def test_what_does_not_fit_is_timed_at_a_smaller_batch_and_said(settings, monkeypatch):
    asked = []
    iterate = Job.iterate
    monkeypatch.setattr(Job, "iterate", lambda job, step: asked.append(job.config.batch) or iterate(job, step))
    whole = plan(settings(peak_tflops=None))
    assert max(asked) == 6
    monkeypatch.setattr(calibration, "free_memory", lambda _: sum(whole.peak.values()) / 2)
    asked.clear()
    halved = plan(settings(peak_tflops=None))
    assert asked[-4:] == [3] * 4
    assert "in steps of 50% of each batch" in halved.speed
    assert math.isfinite(halved.hours)
    assert halved.hours > 0


def test_phases_are_what_the_steps_do(settings):
    config = settings(steps=10, match_from=0.4, fake_from=0.2, regress_until=0.6)
    with rehearsal(config, layered(), data=True) as job:
        found = [(phase.name, phase.first, phase.steps) for phase in job.course.phases]
        losses = {name: set(job.iterate(first)) for name, first, _ in found}
    assert found == [
        ("regression", 0, 2),
        ("regression, fake score", 2, 2),
        ("matching, regression", 4, 2),
        ("matching", 6, 4),
    ]
    assert losses["regression"] == {"loss_reg"}
    assert losses["regression, fake score"] == {"loss_reg", "loss_fake"}
    assert losses["matching, regression"] == {"loss_reg", "loss_kl", "loss_fake"}
    assert losses["matching"] == {"loss_kl", "loss_fake"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--processes", "0"], "--processes 0, expected at least 1"),
        (["--processes", "7"], "--batch 6 cannot be divided equally among 7 processes: expected a multiple of 7"),
        (
            ["--processes", "2", "--accumulate", "2"],
            "--batch 6 cannot be divided equally among 2 processes of 2 microbatches",
        ),
        (
            ["--processes", "3", "--batch-reg", "12", "--pair-count", "10"],
            "the number of pairs 10 cannot be divided equally among 3 processes: expected a multiple of 3",
        ),
        (["--utilization", "1.5"], "--utilization 1.5, expected a share"),
        (["--peak-tflops", "0"], "--peak-tflops 0.0, expected above 0"),
        (["--steps", "0"], "--steps 0, expected at least 1"),
        (["--teacher", "tyni"], "unknown model 'tyni'"),
        (["--pairs", "nowhere"], "nowhere/pairs.json does not exist"),
        (["--preset", "fashoin"], "did you mean 'fashion'?"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, match, tiny_teacher, error_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--teacher", tiny_teacher, "--batch", "6", "--peak-tflops", "1", "--device", "cpu"]
    assert match in error_line("plan", *given, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_count_writes_nothing_and_leaves_the_teacher(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = layered()
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    counted(settings(), teacher)
    after = teacher.network.state_dict()
    assert all(type(after[name]) is torch.Tensor and torch.equal(after[name], before[name]) for name in before)
    assert list(tmp_path.iterdir()) == []
