"""A model that is ready to draw draws what it drew before, and is where it was put."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser, FlowDenoiser, VDenoiser
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.distributed.data_parallel import parallelism
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.models.clipping import Clipping
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student, Teacher
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet
from helpers.tiny_models import save_student, unet2d

CPU = torch.device("cpu")
SIZES = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "channel_mult": [1, 2], "num_blocks": 1}


def pairs_of_images(model, precision):
    """What a model draws before and after `cast_weights`."""
    model.to(CPU, precision)
    noise = model.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    before = model.images(*noise)
    assert model.cast_weights() is model
    return before, model.images(*noise)


def own(network):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Student(name="own", denoiser=EDMDenoiser(network.eval(), EDM()), shape=(3, 8, 8))


@pytest.mark.parametrize("kind", ["ddpm", "ncsn", "adm"])
def test_our_networks_draw_the_same_bit_for_bit(kind):
    torch.manual_seed(0)
    ncsn = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
    if kind == "adm":
        network = DhariwalUNet(**SIZES, model_channels=32, attn_resolutions=[4])
    else:
        network = SongUNet(**SIZES, model_channels=32, attn_resolutions=[4], **(ncsn if kind == "ncsn" else {}))
    model = own(network)
    before, after = pairs_of_images(model, torch.bfloat16)
    assert torch.equal(before, after)
    kinds = {type(module).__name__: module.weight.dtype for module in network.modules() if hasattr(module, "weight")}
    assert kinds["Conv2d"] == kinds["Linear"] == torch.bfloat16
    assert kinds["GroupNorm"] == torch.float32  # which is not cast by autocast either


@pytest.mark.parametrize("name", ["fashion", "fashion-student"])
def test_the_bundled_models_draw_the_same_bit_for_bit(name):
    model = load_model(name)
    before, after = pairs_of_images(replace(model, steps=2) if name == "fashion" else model, torch.bfloat16)
    assert torch.equal(before, after)


def test_without_a_precision_nothing_is_rounded():
    model = load_model("fashion-student")
    weights = copy.deepcopy(model.network.state_dict())
    before, after = pairs_of_images(model, None)
    assert torch.equal(before, after)
    assert all(torch.equal(weights[name], now) for name, now in model.network.state_dict().items())


@pytest.mark.parametrize("rank", [0, 2])
def test_networks_of_diffusers_and_adapters_draw_the_same_bit_for_bit(tmp_path, rank):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    unet2d(tmp_path / "teacher", diffusers.DDPMScheduler())
    save_student(str(tmp_path / "teacher"), tmp_path / "student", rank=rank)
    teacher = load_teacher(str(tmp_path / "teacher"))
    student = load_model(str(tmp_path / "student"), teacher=teacher)
    before, after = pairs_of_images(student, torch.bfloat16)
    assert torch.equal(before, after)


def test_a_network_can_stay_at_home_while_the_rest_goes_to_the_device():
    model = own(SongUNet(**SIZES, model_channels=32))
    model = replace(model, autoencoder=nn.Linear(2, 2))
    assert model.to(torch.device("meta"), network_device=CPU).device == CPU
    assert model.autoencoder.weight.is_meta
    assert model.to(torch.device("meta")).device.type == "meta"


def test_networks_are_built_on_the_device_unless_they_go_there_in_shares():
    device, two = torch.device("meta"), ProcessGroup(world_size=2)
    assert {parallelism(n, 1, s).build_device(device) for n, s in ((ProcessGroup(), "fsdp"), (two, "ddp"))} == {device}
    assert parallelism(two, 1, "fsdp").build_device(device) == CPU


class Island(nn.Module):
    """A network of someone else, which computes its embedding in fp32."""

    def __init__(self):
        super().__init__()
        self.body, self.embed = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(1, 3)
        self.dtypes = set()

    def forward(self, x, t, cond=None):
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(t.float()[:, None])
        h = self.body(x)
        self.dtypes.add(h.dtype)
        return h + embedding[:, :, None, None]


class Fp32Only(Island):
    def forward(self, x, t, cond=None):
        return torch.zeros_like(x).index_add_(0, torch.arange(len(x)), self.body(x))


class Holder(nn.Module):
    """A network that holds a denoiser of ours."""

    def __init__(self):
        super().__init__()
        self.denoiser = EDMDenoiser(Island(), EDM())

    def forward(self, x, t, cond=None):
        return self.denoiser(x, t.exp(), cond)


def foreign(network):
    torch.manual_seed(0)
    return Teacher(name="mine", denoiser=FlowDenoiser(network.eval(), Flow()), shape=(3, 8, 8), solver="ddim", steps=3)


@pytest.mark.parametrize("kind", [Island, Holder])
def test_networks_of_others_compute_in_bf16_with_parts_in_fp32(kind, capsys):
    teacher, z = foreign(kind()), torch.randn(2, 3, 8, 8)
    expected = teacher.images(z)
    before, after = pairs_of_images(teacher, torch.bfloat16)
    assert torch.equal(before, after)
    assert {weight.dtype for weight in teacher.network.parameters()} == {torch.float32}
    island = next(module for module in teacher.network.modules() if isinstance(module, Island))
    assert island.dtypes == {torch.float32, torch.bfloat16}  # before `to`, and after it
    torch.testing.assert_close(teacher.images(z), expected, rtol=0.05, atol=0.05)
    assert capsys.readouterr().err == ""


def test_a_network_for_fp32_only_falls_back_and_says_so(capsys):
    teacher, z = foreign(Fp32Only()), torch.randn(2, 3, 8, 8)
    expected = teacher.images(z)
    state = torch.random.get_rng_state()
    teacher.to(CPU, torch.bfloat16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.denoiser.precision is None
    torch.testing.assert_close(teacher.cast_weights().images(z), expected, rtol=1e-4, atol=1e-4)  # not of bf16
    error = capsys.readouterr().err
    assert error.startswith("mine: ")
    assert "torch.bfloat16" in error
    assert error.count("\n") == 1


def test_a_network_that_fails_in_fp32_too_keeps_its_precision(capsys):
    class Conditional(Island):
        def forward(self, x, t, cond=None):
            return cond.one_hot

    teacher = foreign(Conditional()).to(CPU, torch.bfloat16)
    assert teacher.denoiser.precision == torch.bfloat16
    assert capsys.readouterr().err == ""


def test_a_model_is_shown_in_one_line():
    assert (
        repr(load_model("fashion"))
        == "Teacher('fashion', images 1 x 28 x 28, 10 classes, 1.61 M parameters, evaluations=24)"
    )
    assert repr(own(SongUNet(**SIZES, model_channels=32))).startswith(
        "Student('own', images 3 x 8 x 8, unconditional, "
    )


def test_a_fingerprint_is_of_all_that_determines_the_images():
    def teacher(denoiser=FlowDenoiser, schedule=None, **fields):
        torch.manual_seed(0)
        made = Teacher(name="mine", denoiser=denoiser(Island(), schedule or Flow()), shape=(3, 8, 8))
        return replace(made, **fields)

    torch.manual_seed(1)
    models = [
        teacher(),
        teacher(schedule=Flow(shift=3.0)),
        teacher(schedule=VP.linear_betas()),
        teacher(schedule=VP.linear_betas(last=0.03)),
        teacher(VDenoiser),
        teacher(EDMDenoiser, EDM()),
        teacher(EDMDenoiser, EDM(sigma_max=40.0)),
        teacher(lambda *parts: EDMDenoiser(*parts, sigma_data=0.6), EDM()),
        teacher(clipping=Clipping()),
        teacher(clipping=Clipping(2.0)),
        teacher(autoencoder=nn.Linear(2, 2)),
        teacher(name="other"),
        Teacher(name="mine", denoiser=FlowDenoiser(Island(), Flow()), shape=(3, 8, 8)),
    ]
    prints = [fingerprint(model) for model in models]
    assert len({*prints}) == len(models)
    assert fingerprint(teacher(solver="ddim", steps=3, guidance=2.0)) == prints[0]
    assert fingerprint(teacher().to(CPU)) == prints[0]
    models[2].denoiser.schedule.alpha(torch.zeros(1))  # which moves the schedule to the device of the times
    assert fingerprint(models[2]) == prints[2]
    rounded = teacher()
    rounded.network.bfloat16()
    assert fingerprint(rounded) not in prints


@pytest.mark.parametrize("mesh", ["cuda", "cpu"])
def test_conditions_go_where_the_network_computes(mesh, tiny_teacher):
    """An offloaded shard lies on the CPU; the blocks that are gathered from it compute on the GPU."""
    shard = SimpleNamespace(full_tensor=None, device=CPU, device_mesh=SimpleNamespace(device_type=mesh))
    network = SimpleNamespace(parameters=lambda: iter([shard]))
    model = replace(load_teacher(str(tiny_teacher)), denoiser=SimpleNamespace(net=network))
    assert model.device == torch.device(mesh)


def test_a_student_of_a_network_of_others_has_its_own_digits_on_a_teacher_in_bf16(tmp_path):
    """The teacher that is cast for inference lends its network, not its rounding."""
    diffusers = pytest.importorskip("diffusers")
    name = str(unet2d(tmp_path / "teacher", diffusers.DDIMScheduler()))
    student = save_student(name, tmp_path / "student")
    teacher = load_teacher(name).to(CPU, torch.bfloat16).cast_weights()
    again = load_model(str(tmp_path / "student"), teacher=teacher).network.state_dict()
    assert {weight.dtype for weight in again.values()} == {torch.float32}
    torch.testing.assert_close(dict(again), dict(student.network.state_dict()), rtol=0, atol=0)
