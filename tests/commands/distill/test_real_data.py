"""Real images for a teacher: its resolution, its conditions, its latents; and what does not fit it."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dmdistill.commands.distill.real_data import load_real_images
from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import Flow
from dmdistill.data.conditions import LabelSpace
from dmdistill.data.idx_images import load_idx_images
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from helpers import tiny_pipelines as pipelines

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixel_teacher(shape, classes=()):
    conditions = LabelSpace(tuple(classes)) if classes else None
    denoiser = FlowDenoiser(torch.nn.Identity(), Flow())
    return Teacher(name="t", denoiser=denoiser, shape=shape, conditions=conditions)


def load(source, teacher, **options):
    return load_real_images(str(source), teacher, device=CPU, **options)


def save(file, array, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)


def photos(folder, rng, count=5, size=(6, 6), channels=3, classes=("",), texts=False):
    """Pictures 0.png ..., in class folders by turns; returned as N H W C."""
    pixels = torch.randint(256, (count, *size, channels), generator=rng, dtype=torch.uint8).numpy()
    for i in range(count):
        file = folder / classes[i % len(classes)] / f"{i}.png"
        save(file, pixels[i] if channels > 1 else pixels[i, :, :, 0])
        if texts:
            file.with_suffix(".txt").write_text(f"red square {i % 3}")
    return pixels


def normalized(pixels):
    """Bytes, N H W C, as the networks take them."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_pixels_are_exact_in_any_order_and_repeated(rng, tmp_path):
    pixels = photos(tmp_path / "set", rng)
    images = load(tmp_path / "set", pixel_teacher((3, 6, 6)))
    rows = torch.tensor([3, 0, 3, 4])
    x, index = images[rows]
    assert (len(images), index, images.conditions, x.dtype, x.device) == (5, None, None, torch.float32, CPU)
    assert torch.equal(x, normalized(pixels)[rows])
    assert torch.equal(images[rows][0], x)
    assert images[torch.tensor([], dtype=torch.int64)][0].shape == (0, 3, 6, 6)


@pytest.mark.parametrize("rows", [[5], [-1], [0, 9]])
def test_numbers_out_of_range_are_refused(rows, rng, tmp_path):
    photos(tmp_path / "set", rng)
    with pytest.raises(ValueError, match=f"images .*{rows[-1]} of 5"):
        load(tmp_path / "set", pixel_teacher((3, 6, 6)))[torch.tensor(rows)]


def test_images_are_cropped_and_resized_as_pil_does(rng, tmp_path):
    """The larger and the smaller, wide ones and high ones, a turned one: as PIL fits them to the square."""
    for i, size in enumerate([(20, 31), (30, 20), (5, 5), (4, 9)]):
        photos(tmp_path / "set" / f"{i}", rng, count=1, size=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "set" / "4" / "0.png", photos(tmp_path / "other", rng, count=1, size=(16, 8))[0], exif=exif)
    x, _ = load(tmp_path / "set", pixel_teacher((3, 8, 8)))[torch.arange(5)]
    for i in range(5):
        shown = ImageOps.exif_transpose(Image.open(tmp_path / "set" / f"{i}" / "0.png"))
        least = min(shown.size)
        left, top = (shown.width - least) // 2, (shown.height - least) // 2
        square = shown.crop((left, top, left + least, top + least)).resize((8, 8), Image.Resampling.LANCZOS)
        assert torch.equal(x[i], normalized(np.asarray(square)[None])[0])


def test_labels_are_the_teachers_classes_by_name_else_in_order(rng, tmp_path):
    photos(tmp_path / "set", rng, classes=("cat", "ant", "dog"))
    names = ["ant/1", "ant/4", "cat/0", "cat/3", "dog/2"]
    rows = torch.arange(5)
    by_order = load(tmp_path / "set", pixel_teacher((3, 6, 6), ["x", "y", "z"]))
    assert by_order[rows][1].tolist() == [0, 0, 1, 1, 2]
    teacher = pixel_teacher((3, 6, 6), ["dog", "ant", "cat"])
    by_name = load(tmp_path / "set", teacher)
    assert by_name[rows.flip(0)][1].tolist() == [0, 2, 2, 1, 1]
    assert by_name.conditions is teacher.conditions
    for row, name in enumerate(names):
        expected = normalized(np.asarray(Image.open(tmp_path / "set" / f"{name}.png"))[None])
        assert torch.equal(by_name[torch.tensor([row])][0], expected)


def test_every_kind_of_labelled_set_is_read(rng, idx_folder, tmp_path):
    data, lines = load_idx_images(idx_folder), []
    rows = torch.tensor([7, 2, 7])
    x, index = load(idx_folder, pixel_teacher((1, 12, 12), data.names), say=lines.append)[rows]
    assert torch.equal(x, data.images[rows].float() / 127.5 - 1)
    assert torch.equal(index, data.labels[rows])
    assert lines == [f"--data {idx_folder}: {len(data)} real images, {len(data.names)} classes"]
    cifar = tmp_path / "cifar"
    cifar.mkdir()
    pixels = torch.randint(256, (5, 3, 32, 32), generator=rng, dtype=torch.uint8)
    for i in range(5):
        (cifar / f"data_batch_{i + 1}.bin").write_bytes(bytes([9 - i]) + pixels[i].numpy().tobytes())
    x, index = load(cifar, pixel_teacher((3, 32, 32), range(10)))[torch.tensor([4, 1])]
    assert torch.equal(x, pixels[[4, 1]].float() / 127.5 - 1)
    assert index.tolist() == [5, 8]
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        for i in range(3):
            buffer = io.BytesIO()
            Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(buffer, "PNG")
            archive.writestr(f"00000/img{i}.png", buffer.getvalue())
        labels = [[f"00000/img{i}.png", 2 - i] for i in range(3)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    x, index = load(tmp_path / "edm.zip", pixel_teacher((3, 32, 32), "abc"))[torch.tensor([2, 0])]
    assert torch.equal(x, pixels[[2, 0]].float() / 127.5 - 1)
    assert index.tolist() == [0, 2]
    assert load(tmp_path / "edm.zip", pixel_teacher((3, 32, 32)))[torch.tensor([0])][1] is None


def refused(source, teacher, match):
    with pytest.raises(ValueError, match=match) as caught:
        load(source, teacher)[torch.arange(1)]
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_teacher_is_one_line(rng, tmp_path):
    photos(tmp_path / "set", rng)
    photos(tmp_path / "pets", rng, classes=("cat", "dog"))
    photos(tmp_path / "grey", rng, channels=1)
    deep = np.full((6, 6), 40000, np.uint16)
    save(tmp_path / "deep" / "0.png", deep)
    (tmp_path / "empty").mkdir()
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    colour, classes = pixel_teacher((3, 6, 6)), pixel_teacher((3, 6, 6), "abc")
    refused(tmp_path / "set", pixel_teacher((1, 8, 8)), r"set: images of 3 x 6 x 6, the teacher makes 1 x 8 x 8$")
    refused(tmp_path / "set", pixel_teacher((3, 8, 9)), r"set: images of 3 x 6 x 6, the teacher makes 3 x 8 x 9$")
    refused(tmp_path / "grey", colour, r"grey: images of 1 x 6 x 6, the teacher makes 3 x 6 x 6$")
    refused(tmp_path / "set", classes, r"set: no labels, which t needs")
    refused(tmp_path / "pets", classes, r"pets: 2 classes, the teacher has 3 classes: a, b, c$")
    refused(tmp_path / "deep", colour, r"its mode is I;16, expected 8 bits a channel")
    refused(tmp_path / "empty", colour, "empty holds no images")
    refused(tmp_path / "empty.zip", colour, r"empty\.zip holds no images")
    refused(tmp_path / "nothing", colour, "nothing does not exist")
    (tmp_path / "set" / "0.png").write_bytes(b"no picture")
    refused(tmp_path / "set", colour, r"1 of 5 images cannot be read, first 0\.png")


def test_grey_images_among_coloured_ones_have_three_channels(rng, tmp_path):
    photos(tmp_path / "set" / "a", rng, count=1)
    grey = photos(tmp_path / "set" / "b", rng, count=1, channels=1)
    x, _ = load(tmp_path / "set", pixel_teacher((3, 6, 6)))[torch.tensor([1])]
    assert torch.equal(x, normalized(grey).expand(1, 3, 6, 6))


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory):
    pytest.importorskip("diffusers")
    folder = pipelines.tiny("stable_diffusion", tmp_path_factory.mktemp("sd") / "teacher")
    return load_teacher(str(folder))


def test_captions_and_latents_of_a_text_teacher(rng, text_teacher, cache, tmp_path):
    pixels = photos(tmp_path / "set", rng, size=(16, 16), texts=True)
    images = load(tmp_path / "set", text_teacher)
    rows = torch.tensor([4, 1, 4])
    x, index = images[rows]
    latents = text_teacher.autoencoder.encode(normalized(pixels))
    assert (x.shape, x.dtype) == ((3, *text_teacher.shape), torch.float32)
    assert torch.equal(index, rows)
    assert (x - latents[rows]).abs().max() <= latents.abs().max() / 1024  # batches of other sizes round otherwise
    assert torch.equal(x, x.half().float())
    encoded = text_teacher.text.encode(["red square 1"])
    chosen = images.conditions.select(index).tensors
    assert all(torch.allclose(chosen[name][1:2], tensor.float(), atol=1e-3) for name, tensor in encoded.items())
    assert text_teacher.decode(x).shape == (3, 3, 16, 16)
    photos(tmp_path / "no texts", rng, size=(16, 16))
    refused(tmp_path / "no texts", text_teacher, "no texts: no captions, which .* needs: put a .txt beside each")


def unconditional(teacher):
    return replace(teacher, text=None, conditions=None)


def count_calls(monkeypatch, module, name):
    calls, original = [], getattr(module, name)

    def counted(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_the_second_opening_reads_no_image_and_a_changed_one_is_noticed(rng, text_teacher, tmp_path, monkeypatch):
    photos(tmp_path / "set", rng, size=(16, 16))
    teacher, rows = unconditional(text_teacher), torch.arange(5)
    first, _ = load(tmp_path / "set", teacher, cache=tmp_path / "mine")[rows]
    assert len(list((tmp_path / "mine" / "latents").iterdir())) == 1
    from dmdistill.data import image_folder

    calls = count_calls(monkeypatch, image_folder, "decode_image")
    openings = count_calls(monkeypatch, image_folder.ImageFolder, "open_file")
    second, _ = load(tmp_path / "set", teacher, cache=tmp_path / "mine")[rows]
    assert torch.equal(first, second)
    assert (calls, openings) == ([], [])
    save(tmp_path / "set" / "3.png", 255 - np.asarray(Image.open(tmp_path / "set" / "3.png")))
    changed, _ = load(tmp_path / "set", teacher, cache=tmp_path / "mine")[rows]
    assert len(calls) >= 5
    assert (changed != first).flatten(1).any(1).tolist() == [False, False, False, True, False]


def test_another_autoencoder_has_latents_of_its_own(rng, text_teacher, tmp_path):
    photos(tmp_path / "set", rng, size=(16, 16))
    vae = text_teacher.autoencoder
    doubled = replace(unconditional(text_teacher), autoencoder=type(vae)(vae.model, scale=2 * vae.scale))
    one, _ = load(tmp_path / "set", unconditional(text_teacher))[torch.arange(5)]
    two, _ = load(tmp_path / "set", doubled)[torch.arange(5)]
    assert torch.equal(2 * one, two)


def test_damaged_latents_and_those_that_are_no_numbers_are_named(rng, text_teacher, cache, tmp_path):
    photos(tmp_path / "set", rng, size=(16, 16))
    teacher = unconditional(text_teacher)
    vae = teacher.autoencoder
    huge = replace(teacher, autoencoder=type(vae)(vae.model, scale=1e6))
    with pytest.raises(ValueError, match=r"set: the autoencoder gave latents that are no numbers or too large"):
        load(tmp_path / "set", huge)
    assert not list((cache / "latents").rglob("*.safetensors"))
    load(tmp_path / "set", teacher)
    (file,) = (cache / "latents").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    refused(tmp_path / "set", teacher, "shard-00000.safetensors")
    photos(tmp_path / "grey", rng, size=(16, 16), channels=1)
    refused(tmp_path / "grey", teacher, r"grey: images of 1 x 16 x 16, the teacher makes 3 x 16 x 16$")


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_latents_of_every_family_have_the_teachers_shape(family, tmp_path):
    pytest.importorskip("diffusers")
    teacher = load_teacher(str(pipelines.tiny(family, tmp_path / family)))
    side = teacher.decode(torch.zeros(1, *teacher.shape)).shape[1:]
    assert teacher.autoencoder.image_shape(teacher.shape) == tuple(side)
    assert teacher.autoencoder.encode(torch.zeros(2, *side)).shape == (2, *teacher.shape)
