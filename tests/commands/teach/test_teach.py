"""Teachers of diffusers' own kind, trained here: `dmdistill teach --kind ddpm`."""

import dataclasses
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

diffusers = pytest.importorskip("diffusers")

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.info.command import info
from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import from_preset
from dmdistill.commands.teach import command as teaching
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.commands.teach.recipes import DDPMRecipe, EDMRecipe, group_count
from dmdistill.core.denoisers import GuidedDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.schedules import expand
from dmdistill.data.idx_images import FASHION_CLASSES
from dmdistill.data.image_tensors import LabelledImages, to_uint8
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Teacher
from dmdistill.training.signals import TrainingStopped
from helpers.configs import configure
from helpers.feature_statistics import frechet_to_real

SMALL = NetworkOptions(model_channels=8, channel_mult=(1, 2), patch_size=1, group_channels=4)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Drawing takes most of a run this small: only the test that asks for `pictures` does it."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Teacher, "images", lambda teacher, z, cond: z)


@pytest.fixture
def pictures():
    """Asks for a run's pictures."""


@pytest.fixture
def lesson(idx_folder, tmp_path):
    """Six steps of a small UNet2DModel on images of 12 x 12."""

    def build(name="teaching", **changes):
        base = configure(
            TeachConfig,
            kind="ddpm",
            data=idx_folder,
            out=tmp_path / name,
            network=SMALL,
            steps=6,
            batch=4,
            warmup=2,
            ema_halflife=2.0,
            log_every=2,
            save_every=4,
            compute=ComputeOptions(device="cpu", precision="fp32", threads=1),
        )
        return change(base, **changes)

    return build


@pytest.fixture
def cifar(tmp_path, rng):
    """Sixty images under the names of CIFAR-10's binary version."""
    folder = tmp_path / "cifar"
    folder.mkdir()
    rows = torch.randint(256, (6, 10, 3073), generator=rng, dtype=torch.uint8)
    rows[:, :, 0] %= 10
    for name, part in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], rows, strict=True):
        (folder / f"{name}.bin").write_bytes(part.numpy().tobytes())
    return folder


@pytest.fixture
def coloured(cifar, lesson):
    """Six steps of EDM's kind on CIFAR-10, with all that is random: dropout, augmentation, mirrors."""

    def build(name="teaching", **changes):
        network = NetworkOptions(model_channels=16, channel_mult=(1,), patch_size=4, dropout=0.2)
        settings = {"kind": "edm", "data": cifar, "network": network, "augment": 0.4}
        return lesson(name, **settings | changes)

    return build


@pytest.fixture
def images():
    """Five images of 2 x 8 x 12, of three classes."""
    return LabelledImages(
        torch.zeros(5, 2, 8, 12, dtype=torch.uint8), torch.zeros(5), ("ant", "bee", "cat"), licence="MIT"
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusers_loads_the_teacher_and_samples_it_alike(prediction, lesson, rng):
    config = lesson(prediction=prediction)
    taught = teaching.teach(config)
    loaded = load_teacher(str(config.out))
    assert (loaded.shape, loaded.evaluations, loaded.licence) == ((1, 12, 12), 50, "MIT")
    assert (loaded.name, loaded.feature_extractor, loaded.conditions.names) == (
        "fashion-ddpm",
        "fashion-classifier",
        FASHION_CLASSES,
    )
    assert torch.equal(loaded.denoiser.schedule.alphas_cumprod, taught.denoiser.schedule.alphas_cumprod)

    network = diffusers.UNet2DModel.from_pretrained(config.out / "teacher")
    scheduler = diffusers.DDIMScheduler.from_pretrained(config.out / "teacher" / "scheduler")
    z, labels = torch.randn(3, 1, 12, 12, generator=rng), torch.tensor([4, 0, 9])
    x = z
    scheduler.set_timesteps(9)  # steps of 111 times; one more, from time 0, leads to the clean image
    for t in range(999, -1, -111):
        with torch.no_grad():
            x = scheduler.step(network(x, t, class_labels=labels).sample, t, x).prev_sample
    for teacher in (taught, loaded):
        made = dataclasses.replace(teacher, steps=10).generate(z, teacher.conditions.select(labels))
        torch.testing.assert_close(made / x.std(), x / x.std(), rtol=0, atol=1e-4)


def test_teaching_resumes_bit_for_bit(lesson, terminated):
    whole, stopped = lesson("whole"), lesson("stopped")
    teaching.teach(whole)
    asked = terminated(teaching, "denoising_loss", 3)
    with pytest.raises(TrainingStopped, match="15"):
        teaching.teach(stopped)
    assert not (stopped.out / "teacher").exists()
    teaching.teach(dataclasses.replace(stopped, resume=stopped.out))
    assert len(asked) == 6
    files = [config.out / "teacher" / WEIGHTS for config in (whole, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_teacher_of_cifar_resumes_bit_for_bit(coloured, terminated):
    whole, stopped = coloured("whole"), coloured("stopped")
    teaching.teach(whole)
    terminated(teaching, "denoising_loss", 3)
    with pytest.raises(TrainingStopped, match="15"):
        teaching.teach(stopped)
    teaching.teach(dataclasses.replace(stopped, resume=stopped.out))
    files = [config.out / "teacher" / "model.safetensors" for config in (whole, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_teacher_of_cifar_is_described_whole(coloured, pictures):
    """Dropout and the labels of augmentation are its network's, and change nothing once it is taught."""
    config = coloured(sample_every=3, save_dtype="fp16")
    taught = teaching.teach(config)
    loaded = load_teacher(str(config.out))
    network = loaded.config["network"]
    assert (loaded.name, loaded.shape, loaded.feature_extractor, loaded.licence) == (
        "cifar10",
        (3, 32, 32),
        None,
        "unknown",
    )
    assert (network["augment_dim"], network["dropout"], loaded.conditions.names[9]) == (9, 0.2, "truck")
    z, cond = loaded.sample_inputs(3, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.images(z, cond), taught.images(z, cond), rtol=0, atol=0.02)
    assert torch.equal(taught.images(z, cond), taught.images(z, cond))
    made = sorted(file.name for file in (config.out / "samples").iterdir())
    assert made == ["step-000003.png", "step-000006.png", "teacher.png"]


@pytest.mark.parametrize("changes", [{"augment": 0.0}, {"augment": 0.0, "mirror": True}, {"augment": 0.3}])
def test_what_is_done_to_the_images_changes_what_is_learnt(changes, coloured):
    """And a network is told of it just where it has to be."""
    weights = {}
    for name, few in (("some", changes), ("other", {"augment": 0.9})):
        config = coloured(name, **few)
        teaching.teach(config)
        weights[name] = load_file(config.out / "teacher" / "model.safetensors")
    assert ("map_augment.weight" in weights["some"]) == bool(changes["augment"])
    assert not torch.equal(weights["some"]["enc.8x8_conv.weight"], weights["other"]["enc.8x8_conv.weight"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"augment": 1.5}, "--augment 1.5"),
        ({"network": NetworkOptions(dropout=1.0)}, "--dropout 1.0"),
        ({"kind": "ddpm", "network": SMALL}, "--augment 0.4 with --kind ddpm"),
    ],
)
def test_changes_that_cannot_be_are_refused(changes, line, coloured):
    config = coloured(**changes)
    with pytest.raises(ValueError, match=line):
        teaching.teach(config)
    assert not config.out.exists()


@pytest.mark.slow
def test_a_compiled_teacher_learns_the_same(coloured):
    """To rounding: compiled networks add in another order."""
    plain, compiled = (
        coloured(f"{on}", network=NetworkOptions(model_channels=16, channel_mult=(1,), patch_size=4), compile=on)
        for on in (False, True)
    )
    for config in (plain, compiled):
        teaching.teach(config)
    weights = [load_file(config.out / "teacher" / "model.safetensors") for config in (plain, compiled)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.02, atol=2e-3)


def test_half_of_the_bytes_hold_the_same_teacher(lesson):
    full, half = lesson("full"), lesson("half", save_dtype="fp16")
    for config in (full, half):
        teaching.teach(config)
    weights = [load_file(config.out / "teacher" / WEIGHTS) for config in (full, half)]
    assert {tensor.dtype for tensor in weights[1].values()} == {torch.float16}
    assert all(torch.equal(tensor.half(), weights[1][name]) for name, tensor in weights[0].items())
    assert {p.dtype for p in load_teacher(str(half.out)).network.parameters()} == {torch.float32}


def test_a_label_dropped_teaches_the_last_class(lesson):
    """With every label dropped the other classes stay as they began."""
    config = lesson(label_dropout=1.0, weight_decay=0.0)
    taught = teaching.teach(config).network.model.class_embedding.weight
    torch.manual_seed(config.seed)
    begun = DDPMRecipe(config).new_teacher(teaching.load_labelled_images(config.data))
    begun = begun.network.model.class_embedding.weight
    assert torch.equal(taught[:10], begun[:10])
    assert not torch.equal(taught[10], begun[10])


def test_edm_takes_square_images(images, lesson):
    """Its network and its augmentation know one side."""
    with pytest.raises(ValueError, match="--kind edm for images of 8 x 12"):
        EDMRecipe(lesson(kind="edm")).new_teacher(images)


@torch.no_grad()
def test_guidance_leads_away_from_the_last_class(images, lesson):
    teacher = DDPMRecipe(lesson()).new_teacher(images)
    x, t = torch.randn(4, 2, 8, 12), torch.tensor([0.0, 10.0, 500.0, 999.0])
    cond = teacher.conditions.select(torch.tensor([2, 0, 1, 1]))
    path, eps = teacher.denoiser.schedule, teacher.network.model(x, t, class_labels=torch.full((4,), 3)).sample
    mu_null = (x - expand(path.sigma(t), x) * eps) / expand(path.alpha(t), x)
    expected = mu_null + 3 * (teacher.denoiser(x, t, cond) - mu_null)
    torch.testing.assert_close(GuidedDenoiser(teacher.denoiser, 3.0)(x, t, cond), expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_error_of_what_is_predicted(prediction, images, lesson, rng):
    """Of eps, or of v = alpha eps - sigma x."""
    taught = DDPMRecipe(lesson(prediction=prediction))
    teacher = taught.new_teacher(images)
    path, cond = teacher.denoiser.schedule, teacher.conditions.select(torch.arange(64) % 3)
    x, eps = torch.randn(2, 64, 2, 8, 12, generator=rng)
    t = taught.sample_t(64, rng=rng)
    answer = teacher.network(path.diffuse(x, eps, t), t, cond)
    wanted = eps if prediction == "epsilon" else expand(path.alpha(t), x) * eps - expand(path.sigma(t), x) * x
    expected = ((answer - wanted) ** 2).mean()
    torch.testing.assert_close(denoising_loss(teacher.denoiser, x, t, eps, cond), expected, rtol=1e-4, atol=0)


def test_times_are_all_the_schedules_steps_alike(lesson, rng):
    t = DDPMRecipe(lesson()).sample_t(20000, rng=rng)
    assert (t.min(), t.max(), t.dtype) == (0, 999, torch.float32)
    assert torch.equal(t, t.round())
    assert t.mean().item() == pytest.approx(499.5, abs=10)


def test_the_network_attends_where_it_is_told(images, lesson):
    network = dataclasses.replace(SMALL, channel_mult=(1, 2, 3), attn_resolutions=(4,))
    model = DDPMRecipe(lesson(network=network)).new_teacher(images).network.model
    assert model.config.down_block_types == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]
    assert model.config.up_block_types == ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    assert model(torch.randn(2, 2, 8, 12), 0, class_labels=torch.tensor([3, 0])).sample.shape == (2, 2, 8, 12)


@pytest.mark.parametrize(
    ("channels", "least", "groups"), [(32, 16, 2), (24, 16, 1), (48, 16, 3), (8, 16, 1), (56, 16, 2)]
)
def test_groups_are_equal_and_as_many_as_can_be(channels, least, groups):
    assert group_count(channels, least=least) == groups


def test_a_teacher_that_cannot_be_written_leaves_nothing(lesson, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(diffusers.DDIMScheduler, "save_pretrained", full)
    config = lesson()
    with pytest.raises(OSError, match="no space"):
        teaching.teach(config)
    assert sorted(path.name for path in config.out.iterdir()) == ["checkpoints", "config.toml", "metrics.jsonl"]
    monkeypatch.undo()
    teaching.teach(change(config, resume=config.out))
    assert load_teacher(str(config.out)).shape == (1, 12, 12)


def test_info_tells_of_it(lesson, capsys):
    config = lesson()
    teaching.teach(config)
    capsys.readouterr()
    info(InfoConfig(str(config.out)))
    told = capsys.readouterr().out
    assert all(word in told for word in ("fashion-ddpm, a teacher", "UNet2DModel", "1 x 12 x 12", "sneaker", "MIT"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"patch_size": 2}, "--patch-size 2 with --kind ddpm: a UNet2DModel has no patches"),
        ({"channel_mult": (1, 1, 1, 1)}, "--channel-mult"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_the_run_begins(changes, line, lesson):
    config = lesson(network=dataclasses.replace(SMALL, **changes))
    with pytest.raises(ValueError, match=line):
        teaching.teach(config)
    assert not config.out.exists()


def test_without_diffusers_a_line_says_what_to_install(lesson, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"--kind ddpm needs diffusers .*pip install 'dmdistill\[diffusers\]'"):
        teaching.teach(lesson())


def test_what_is_said_beside_a_network_is_checked(lesson):
    config = lesson()
    teaching.teach(config)
    file = config.out / "teacher" / "dmdistill.json"
    about = json.loads(file.read_text())
    for names in (11, 10):
        file.write_text(json.dumps(about | {"feature_extractor": None, "classes": list("abcdefghijk"[:names])}))
        teacher = load_teacher(str(config.out))
        assert (teacher.feature_extractor, len(teacher.conditions)) == (None, names)
    file.write_text(json.dumps(about | {"classes": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"dmdistill\.json names 2 classes, the network knows 11"):
        load_teacher(str(config.out))
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"dmdistill\.json"):
        load_teacher(str(config.out))


def test_pictures_without_classes_make_an_unconditional_network(class_pictures, lesson, tmp_path):
    """The classes of a folder are its subfolders; one of them has none."""
    config = lesson(data=class_pictures / "class-3")
    teaching.teach(config)
    teacher = load_teacher(str(config.out))
    assert (teacher.name, teacher.shape, teacher.conditions) == ("class-3-ddpm", (1, 8, 8), None)
    assert teacher.network.model.config.num_class_embeds is None


@pytest.fixture
def drawn_data(tmp_path, idx_writer):
    """3000 images that the bundled student draws, under Fashion-MNIST's names."""
    student, rng = load_model("fashion-student"), torch.Generator().manual_seed(0)
    z, labels = student.sample_noise(3000, rng=rng)
    images = torch.cat(
        [student.images(a, student.condition(b)) for a, b in zip(z.split(500), labels.split(500), strict=True)]
    )
    idx_writer(tmp_path / "train-images-idx3-ubyte.gz", to_uint8(images[:, 0]))
    idx_writer(tmp_path / "train-labels-idx1-ubyte.gz", labels.to(torch.uint8))
    return tmp_path


@pytest.mark.slow
def test_the_whole_road_from_images_to_a_student(drawn_data, pictures):
    """A teacher of minutes, its pairs, its student: nearer the real images (25.5 once) than where it began (38.4)."""
    folder = drawn_data
    teaching.teach(
        from_preset(
            TeachConfig, "fashion-ddpm", data=folder, out=folder / "taught", steps=240, warmup=50, ema_halflife=20.0
        )
    )
    ode, compute = SolverOptions(solver_steps=10), ComputeOptions(precision="fp32")
    pairs(
        configure(
            PairsConfig, teacher=str(folder / "taught"), out=folder / "pairs", pair_count=256, ode=ode, compute=compute
        )
    )
    distill(
        configure(
            DistillConfig,
            teacher=str(folder / "taught"),
            pairs=folder / "pairs",
            out=folder / "distilled",
            steps=100,
            batch=16,
            batch_reg=32,
            match_from=0.6,
            regress_until=0.6,
            fake_from=0.4,
            fake_steps=2,
            warmup=10,
            ema_halflives=(10.0,),
            evaluate_every=1000,
            evaluate_images=500,
            report_images=500,
            ode=ode,
            compute=compute,
        )
    )
    feature_extractor, student = (
        load_classifier_features("fashion-classifier", torch.device("cpu")),
        load_model(str(folder / "distilled")),
    )
    z, cond = student.sample_inputs(500, rng=torch.Generator().manual_seed(1))
    with torch.no_grad():
        start = Generator(load_teacher(str(folder / "taught")).denoiser)(z, cond)
    ended, began = (frechet_to_real(feature_extractor, [images]) for images in (student.images(z, cond), start))
    assert ended < 0.8 * began
