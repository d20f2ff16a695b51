"""`dmdistill plan`: counts against hand counts, against tensors with data, and the sums of its parts."""

import dataclasses
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from dmdistill.commands.distill.schedule import BatchNeeds
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change
from dmdistill.commands.plan import speed
from dmdistill.commands.plan.command import plan
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.plan.dry_run import DryRun, dry_run
from dmdistill.commands.plan.estimate import format_hours
from dmdistill.commands.plan.tensor_ledger import FakeTensors
from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.data.shards import rows_in_memory
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from helpers.configs import CPU, configure

LOAD_TEACHER = "dmdistill.commands.distill.command.load_teacher"
WEIGHTS = ("teacher", "generator", "fake score", "EMAs")


@pytest.fixture
def settings(monkeypatch):
    """A plan of six steps for a device of a stated speed, by default for a teacher of two convolutions."""
    monkeypatch.setattr(LOAD_TEACHER, lambda name, **_: convolutions() if not name else load_teacher(name))

    def build(**changes):
        base = configure(
            PlanConfig,
            teacher="",
            pair_count=12,
            steps=6,
            batch=6,
            batch_reg=4,
            report_images=20,
            solver_steps=3,
            peak_tflops=2.0,
            utilization=0.25,
            compute=CPU,
        )
        return change(base, **changes)

    return build


class Convolutions(nn.Module):
    """Two convolutions, C -> K -> C channels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x, t=None, cond=None):
        return self.second(self.first(x).relu())


class Unconditional(nn.Module):
    """Layers that see neither time nor condition."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, t, cond):
        return self.layers(x)


class ConvolutionBlock(Convolutions):
    """The same, which --checkpointing blocks finds by its name."""


def convolutions(channels=3, hidden=7, height=6, width=5):
    return Teacher(
        name="convolutions", denoiser=X0Denoiser(Convolutions(channels, hidden), EDM()), shape=(channels, height, width)
    )


@contextmanager
def run_dry(config, teacher, *, data=False, ledger=False):
    with dry_run(config, teacher, device=torch.device("cpu"), precision=None, data=data, ledger=ledger) as run:
        yield run


def count(config, teacher, **changes):
    """The cost of a step of each phase, by its name."""
    with run_dry(change(config, **changes), teacher) as run:
        return {phase.name: run.count(phase) for phase in run.distillation.phases.phases}


def count_last(config, teacher, *, data):
    """The cost of a step of the last phase, with data or with shapes only."""
    with run_dry(config, teacher, data=data, ledger=True) as run:
        return run.count(run.distillation.phases.phases[-1])


@pytest.mark.parametrize("fake_steps", [1, 3])
def test_operations_are_those_of_a_hand_count(fake_steps, settings):
    """A convolution F = 2 C K 9 H W an image: once forward, once for its weights' gradient, once for its input's."""
    b, r, f = 6, 4, 2 * 3 * 7 * 9 * 6 * 5
    trained, evaluated = 2 * f + 3 * f, 2 * f  # the first layer's input needs no gradient
    flops = count(settings(fake_steps=fake_steps), convolutions())["matching, regression"].flops
    fresh = (fake_steps - 1) * b
    assert flops == (b + r) * trained + 2 * b * evaluated + fake_steps * b * trained + fresh * evaluated


@pytest.mark.parametrize("student_steps", [2, 4])
def test_the_steps_before_a_few_step_students_are_counted_as_often_as_they_are_simulated(student_steps, settings):
    """On average half of the others, of the generator's noise and of that of two further updates of the fake score."""
    config = settings(method="dmd2", lambda_reg=0.0, fake_steps=3)
    (one,), (few,) = (count(config, convolutions(), student_steps=n).values() for n in (1, student_steps))
    assert few.flops - one.flops == (student_steps - 1) / 2 * 3 * 6 * 2 * (2 * 3 * 7 * 9 * 6 * 5)


def test_images_of_a_few_step_student_are_planned_with_all_its_steps(settings):
    """In measurements, of which the probe has 128 images, and in the report."""
    without_pairs = {"lambda_reg": 0.0, "pair_count": PlanConfig().pair_set.pair_count, "batch_reg": 32}
    options = {"method": "dmd2", "evaluate_every": 3, "report_images": 5, **without_pairs}
    one, few = (plan(settings(**options, student_steps=count)).work[-2:] for count in (1, 4))
    evaluation = 2 * 2 * 3 * 7 * 9 * 6 * 5
    assert few[0].flops - one[0].flops == pytest.approx(2 * 128 * 3 * evaluation)
    assert few[1].flops == pytest.approx(5 * (5 + 4) * evaluation)  # Heun's three steps ask five times


@pytest.mark.parametrize(("lambda_reg", "compared"), [(1.0, 8 * 128), (0.0, 8 * 16)])
def test_measurements_are_those_of_a_hand_count(lambda_reg, compared, settings):
    """Of 128 images: the student, fake and real score at 8 noise levels; of 16 the teacher's solver; and mu_real on
    data, of the pairs or of the teacher.
    """
    options = {} if lambda_reg else {"pair_count": PlanConfig().pair_set.pair_count, "batch_reg": 32}
    work = plan(settings(lambda_reg=lambda_reg, **options)).work[-2]
    assert work.flops == pytest.approx((128 * (1 + 8 + 8) + 16 * 5 + compared) * 2 * 2 * 3 * 7 * 9 * 6 * 5)


def test_memory_of_weights_is_theirs(settings):
    """Three networks and two EMAs; AdamW's states of the two trained networks, with a step for each weight."""
    memory = count(settings(ema_halflives=(1.0, 2.0)), convolutions())["matching, regression"].memory
    numbers = [p.numel() for p in convolutions().network.parameters()]
    size = 4 * sum(numbers)
    assert [memory[part] for part in WEIGHTS] == [size, size, size, 2 * size]
    assert memory["optimizer"] == 2 * (2 * size + 4 * len(numbers))


@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_without_data_the_count_is_that_of_real_tensors(checkpointing, settings, tiny_teacher):
    config = settings(checkpointing=checkpointing, teacher=str(tiny_teacher))
    shapes, real = (count_last(config, load_teacher(config.teacher), data=data) for data in (False, True))
    tolerance = 1e-3 if checkpointing == "none" else 0.05
    assert sum(shapes.memory.values()) == pytest.approx(sum(real.memory.values()), rel=tolerance)
    assert shapes.flops == real.flops


def test_twice_the_batch_is_twice_the_activations_and_operations(settings):
    config = settings(lambda_reg=0.0)
    once, twice = (count(config, convolutions(), batch=batch)["matching"] for batch in (320, 640))
    assert twice.flops == 2 * once.flops
    assert twice.memory["activations"] == pytest.approx(2 * once.memory["activations"], rel=0.02)
    for part in (*WEIGHTS, "optimizer"):
        assert twice.memory[part] == once.memory[part]


def test_checkpointing_trades_memory_for_operations(settings):
    teacher = convolutions()
    blocks = nn.Sequential(*[ConvolutionBlock(3, 7) for _ in range(4)])
    teacher.denoiser.net = Unconditional(blocks)
    plain, recomputed = (
        count(settings(batch=320), teacher, checkpointing=checkpointing)["matching, regression"]
        for checkpointing in ("none", "blocks")
    )
    assert recomputed.memory["activations"] < plain.memory["activations"]
    assert recomputed.flops > plain.flops


def test_adapters_shrink_the_optimizer_and_share_weights(settings, tiny_teacher):
    pytest.importorskip("peft")
    config, teacher = settings(), load_teacher(str(tiny_teacher))
    full = count(config, teacher)["matching, regression"].memory
    adapted = count(config, teacher, lora_student=2, lora_fake=2)["matching, regression"].memory
    assert adapted["teacher"] == full["teacher"]
    for part in ("generator", "fake score", "EMAs", "optimizer"):
        assert adapted[part] < full[part] / 2


class PromptNetwork(nn.Module):
    """Convolutions, and an embedding of the prompt that is added to their output."""

    def __init__(self):
        super().__init__()
        self.layers, self.embed = Convolutions(3, 7), nn.Linear(5, 3)

    def forward(self, x, t, cond):
        return self.layers(x) + self.embed(cond.tensors["prompt_embeds"]).mean(1)[:, :, None, None]


def text_teacher(device="cpu"):
    """A teacher of two prompts of 4 tokens of 5 numbers."""
    shard, empty = ({"prompt_embeds": torch.zeros(rows, 4, 5)} for rows in (2, 1))
    with torch.device(device):
        denoiser = X0Denoiser(PromptNetwork(), EDM())
    prompts = PromptSet(["a", "b"], rows_in_memory(shard), empty)
    return Teacher(name="text", denoiser=denoiser, shape=(3, 6, 5), conditions=prompts)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_prompts_are_counted_as_those_with_data(guidance, settings):
    config, teacher = settings(), dataclasses.replace(text_teacher(), guidance=guidance)
    shapes, real = (count_last(config, teacher, data=data) for data in (False, True))
    assert shapes.flops == real.flops
    assert sum(shapes.memory.values()) == pytest.approx(sum(real.memory.values()), rel=0.02)


def test_a_teacher_without_weights_is_planned_as_one_with(settings, monkeypatch):
    """On the meta device, where weights take no memory."""
    found = []
    for device in ("cpu", "meta"):
        config = settings()
        monkeypatch.setattr(LOAD_TEACHER, lambda _, device=device, **__: text_teacher(device))
        found.append(plan(config).numbers())
    assert found[0] == found[1]
    with pytest.raises(ValueError, match=r"meta device.*--peak-tflops"):
        plan(change(config, peak_tflops=None))


def test_rounded_weights_leave_no_others_behind(settings, tiny_teacher):
    """The fp32 weights of a teacher in bf16 are dropped, on the meta device too."""
    found = []
    for device in ("cpu", "meta"):
        teacher = load_teacher(str(tiny_teacher))
        teacher.denoiser.to(device)
        teacher.denoiser.precision = torch.bfloat16
        found.append(count(settings(), teacher)["matching, regression"].memory)
    assert sum(found[0].values()) == sum(found[1].values())
    assert [found[0][part] for part in WEIGHTS] == [found[1][part] for part in WEIGHTS]
    assert found[0]["teacher"] < 0.6 * found[0]["generator"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_copies_share_the_weights_that_networks_share(device):
    layer = nn.Linear(3, 5, device=device)
    mode = FakeTensors()
    one, other = mode.copy_network(nn.Sequential(layer)), mode.copy_network(nn.Sequential(layer, nn.ReLU()))
    assert one[0].weight is other[0].weight
    assert one[0].weight.device.type == "cpu"


def test_the_parts_add_up(settings, tmp_path):
    config = settings(json=tmp_path / "plan.json", match_from=0.5, processes=2)
    estimate = plan(config)
    numbers = json.loads(config.json.read_text())
    assert numbers["memory_peak"] == max(sum(parts.values()) for parts in estimate.memory.values())
    assert numbers["flops"] == pytest.approx(sum(one["flops"] for one in numbers["work"]))
    assert numbers["hours"] == pytest.approx(sum(one["seconds"] for one in numbers["work"]) / 3600)
    assert numbers["device_hours"] == pytest.approx(2 * numbers["hours"])
    assert (numbers["batch"], numbers["batch_reg"]) == (3, 2)
    names = [one["name"] for one in numbers["work"]]
    steps = ["3 steps: regression", "3 steps: matching, regression"]
    assert names == ["12 pairs", *steps, "1 measurements", "report of 20 images"]
    assert [one["flops"] for one in numbers["work"]][2] == 3 * 2 * numbers["flops_per_step"]["matching, regression"]


def test_latents_are_sampled_by_the_batch_of_all_processes(settings, monkeypatch):
    """As many at once as the run samples, and in its probe: 16 of 32, not 4."""
    latents, base = dataclasses.replace(convolutions(), autoencoder=nn.Identity()), settings(batch=32, batch_reg=8)
    monkeypatch.setattr(LOAD_TEACHER, lambda _, **__: latents)
    one, eight = (plan(change(base, processes=processes)) for processes in (1, 8))
    sampling = [estimate.memory["sampling"] for estimate in (one, eight)]
    assert sampling[0]["activations"] == sampling[1]["activations"]
    assert one.work[2] == dataclasses.replace(eight.work[2], seconds=one.work[2].seconds)  # measurements
    sizes, evaluate = [], DryRun.evaluate_teacher
    monkeypatch.setattr(DryRun, "evaluate_teacher", lambda run, images: sizes.append(images) or evaluate(run, images))
    plan(change(base, processes=8, peak_tflops=None))
    assert set(sizes) == {16}


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
    plain, guided = (plan(settings(teacher=str(tiny_teacher), solver="ddim", guidance=g)).work[0] for g in (1.0, 2.0))
    assert guided.flops == 2 * plain.flops


@pytest.mark.parametrize("seconds", [0.01, 0.02])
def test_timed_steps_make_the_hours(seconds, settings, monkeypatch):
    """From the seconds of a step, and of an evaluation of all images that are sampled at once."""
    monkeypatch.setattr(speed, "seconds", lambda work, device: seconds)
    estimate = plan(settings(peak_tflops=None))
    pairs, steps, *_ = estimate.work
    assert steps.seconds == pytest.approx(6 * seconds)
    assert pairs.seconds == pytest.approx(12 * 5 * seconds / 500)
    assert "%" not in estimate.speed


def test_microbatches_halve_the_activations(settings):
    """But for images and noise, which are of the full batch; each microbatch is timed with an image at least."""
    config = settings(lambda_reg=0.0, batch=640)
    one, two, four = (count(config, convolutions(), accumulate=microbatches)["matching"] for microbatches in (1, 2, 4))
    first, second = (
        more.memory["activations"] - less.memory["activations"] for more, less in ((one, two), (two, four))
    )
    assert first == pytest.approx(2 * second, rel=1e-3)
    assert first > 0.4 * one.memory["activations"]
    assert one.flops == two.flops == four.flops
    assert plan(settings(accumulate=2, peak_tflops=None)).hours > 0


def test_shards_of_an_offloaded_teacher_are_planned_in_the_host_s_memory(settings, capsys):
    """With hybrid sharding those of a group, however many groups there are."""
    sharded = {"strategy": "fsdp", "lambda_reg": 0.0}
    on_device = plan(settings(**sharded, processes=2))
    offloaded = plan(settings(**sharded, processes=2, offload_teacher=True))
    (step,) = {*on_device.memory} - {"sampling"}
    assert on_device.offloaded == 0
    assert offloaded.offloaded == on_device.memory[step]["teacher"]
    assert "of the teacher in the host's memory" in capsys.readouterr().out
    change = dict(on_device.memory[step])
    assert change.pop("teacher") == offloaded.offloaded
    assert {part: size for part, size in offloaded.memory[step].items() if part != "teacher"} == change
    groups = plan(settings(**sharded, processes=4, sharding_group=2, batch=2 * settings().batch))
    assert groups.memory == on_device.memory


@pytest.mark.parametrize(
    ("hours", "text"), [(0.01, "0.6 minutes"), (0.9, "54 minutes"), (1.0, "1 hours"), (1234.5, "1.23e+03 hours")]
)
def test_a_time_below_an_hour_is_in_minutes(hours, text):
    assert format_hours(hours) == text


def test_the_memory_of_sharded_networks_is_planned_by_part(settings):
    """And before they are sharded. A single process shards nothing, and neither does DDP."""
    full = plan(settings()).memory
    assert plan(settings(strategy="fsdp")).memory.keys() == full.keys()
    assert plan(settings(processes=2)).host == plan(settings(strategy="fsdp")).host == 0
    estimate = plan(settings(processes=2, strategy="fsdp"))
    sharded, step = estimate.memory, "matching, regression"
    assert 3 <= estimate.host / full[step]["teacher"] < 3.1  # the teacher and two copies
    assert sharded["pairs, not sharded"]["teacher"] == full[step]["teacher"]
    files = {"processes": 2, "strategy": "fsdp", "teacher": "fashion"}
    assert plan(settings(**files, lambda_reg=0.0)).host == 0  # shards are read
    assert plan(settings(**files)).host == sum(p.nbytes for p in load_teacher("fashion").network.parameters())
    assert sharded["pairs, not sharded"]["activations"] == sharded["sampling"]["activations"]
    assert "pairs, not sharded" not in plan(settings(processes=2, strategy="fsdp", lambda_reg=0.0)).memory
    assert sharded[step]["gathered"] > 0
    assert sharded["sampling"]["gathered"] == 2 * padded(convolutions().network, 2)
    for part in WEIGHTS:
        assert full[step][part] / 2 < sharded[step][part] < full[step][part]  # 3 and 7 rows are padded


def padded(network, world_size):
    """The bytes of a network whose weights are padded to equal shards."""
    return 4 * sum(world_size * -(-len(one) // world_size) * one[0].numel() for one in network.parameters())


def test_a_batch_that_does_not_fit_is_timed_at_a_smaller_size(settings, monkeypatch):
    sizes, iterate = [], Distillation.iterate

    def record(run, step):
        batch = run.batches.batch(step, BatchNeeds())
        sizes.append(len(batch.z))
        return iterate(run, step)

    monkeypatch.setattr(Distillation, "iterate", record)
    full = plan(settings(peak_tflops=None))
    assert max(sizes) == 6
    monkeypatch.setattr(speed, "free_memory", lambda _: sum(full.peak.values()) / 2)
    sizes.clear()
    halved = plan(settings(peak_tflops=None))
    assert sizes[-4:] == [3] * 4
    assert "50%" in halved.speed
    assert math.isfinite(halved.hours)
    assert halved.hours > 0


def test_phases_are_what_the_steps_do(settings):
    config = settings(steps=10, match_from=0.4, fake_from=0.2, regress_until=0.6)
    with run_dry(config, convolutions(), data=True) as run:
        found = [(phase.name, phase.first, phase.steps) for phase in run.distillation.phases.phases]
        losses = {name: set(run.distillation.iterate(first)) for name, first, _ in found}
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
    ("arguments", "texts"),
    [
        (["--processes", "0"], ["--processes 0"]),
        (["--processes", "7"], ["--batch 6 ", "7 processes"]),
        (["--processes", "2", "--accumulate", "2"], ["--batch 6 ", "2 processes", "--accumulate 2"]),
        (["--processes", "3", "--batch-reg", "12", "--pair-count", "10"], ["pairs 10 ", "3 processes"]),
        (["--utilization", "1.5"], ["--utilization 1.5"]),
        (["--peak-tflops", "0"], ["--peak-tflops 0"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--teacher", "tyni"], ["'tyni'"]),
        (["--pairs", "nowhere"], ["nowhere"]),
        (["--method", "dmd2", "--data", "nowhere"], ["nowhere does not exist: expected a folder"]),
        (["--reference", "nowhere"], ["nowhere does not exist: expected a folder"]),
        (["--method", "dmd2", "--data", str(Path(__file__).parent)], ["holds no images"]),
        (["--preset", "fashoin"], ["'fashoin'", "did you mean 'fashion'?"]),
    ],
)
def test_an_option_that_cannot_be_is_one_line(arguments, texts, tiny_teacher, error_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--teacher", tiny_teacher, "--batch", "6", "--peak-tflops", "1", "--device", "cpu"]
    line = error_line("plan", *given, *arguments)
    assert all(text in line for text in texts), line
    assert list(tmp_path.iterdir()) == []


def test_a_count_writes_nothing_and_leaves_the_teacher(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = convolutions()
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    count(settings(), teacher)
    after = teacher.network.state_dict()
    assert all(type(after[name]) is torch.Tensor and torch.equal(after[name], before[name]) for name in before)
    assert list(tmp_path.iterdir()) == []


def test_lpips_is_counted_without_its_weights(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("DMDISTILL_ASSETS", raising=False)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path))
    plain = count(settings(distance="huber"), convolutions())
    with_lpips = count(settings(distance="lpips", lpips_side=16), convolutions())
    assert with_lpips.keys() == plain.keys()
    assert all(with_lpips[phase].flops > 100 * plain[phase].flops for phase in plain)
