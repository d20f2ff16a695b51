"""Sets of images: what was written is what is read, whichever the format, the range and the order of the ranges."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.idx_images import load_idx_images
from dmdistill.data.image_sources import is_images, open_images
from dmdistill.data.image_tensors import center_crop_batch
from dmdistill.data.training_set import load_labelled_images
from dmdistill.io import file_hashes as digests


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pixels(rng):
    """Eleven images of 3 x 5 x 7."""
    return torch.randint(256, (11, 3, 5, 7), generator=rng, dtype=torch.uint8)


def png(image, kind="PNG"):
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_folder(folder, images):
    """One level down, some of them, under names whose order is that of the images."""
    for i, image in enumerate(images):
        file = folder / f"{i // 4:02d}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return folder


def write_zip(file, images, *, labels=None):
    """As EDM's dataset tool writes it, the entries in any order."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(len(images))]
    with zipfile.ZipFile(file, "w") as archive:
        for i in reversed(range(len(images))):
            archive.writestr(names[i], png(images[i]))
        pairs = None if labels is None else list(map(list, zip(names, labels, strict=True)))
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return file


def write_binary(folder, images, labels):
    """CIFAR-10's binary version, of any number of images a file."""
    folder.mkdir()
    parts = images.chunk(6)
    for name, part, few in zip(names(".bin"), parts, labels.chunk(6), strict=True):
        (folder / name).write_bytes(torch.cat([few[:, None], part.flatten(1)], 1).numpy().tobytes())
    return folder


def names(suffix):
    return [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]


def check(source, images):
    """Any range of it is that range of the images."""
    assert (len(source), source.shape) == (len(images), tuple(images.shape[1:]))
    for rows in (range(len(images)), range(2, 9), range(1, 2), range(10, 0, -3), range(3, 3), [7, 0, 7, 3]):
        found = source.images(rows)
        assert found.dtype == torch.uint8
        assert torch.equal(found, images[list(rows)])


def test_folders_and_zips_hold_their_pictures_in_the_order_of_their_names(pixels, tmp_path):
    folder, file = write_folder(tmp_path / "folder", pixels), write_zip(tmp_path / "x.zip", pixels, labels=range(11))
    check(open_images(str(folder)), pixels)
    check(open_images(str(file)), pixels)


def test_grey_pictures_have_one_channel_and_are_coloured_among_coloured_ones(pixels, tmp_path):
    grey = pixels[:, :1]
    check(open_images(str(write_folder(tmp_path / "grey", grey))), grey)
    write_folder(tmp_path / "mixed", [pixels[0], *grey[1:]])
    found = open_images(str(tmp_path / "mixed")).images(range(11))
    assert torch.equal(found, torch.cat([pixels[:1], grey[1:].expand(-1, 3, -1, -1)]))
    write_folder(tmp_path / "grey first", [grey[0], *pixels[1:]])
    found = open_images(str(tmp_path / "grey first")).images(range(11))
    assert torch.equal(found, torch.cat([grey[:1].expand(-1, 3, -1, -1), pixels[1:]]))


def test_cifar_is_read_with_its_labels(tmp_path, rng):
    images = torch.randint(256, (30, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.randint(10, (30,), generator=rng, dtype=torch.uint8)
    folder = write_binary(tmp_path / "binary", images, labels)
    check(open_images(str(folder)), images[:25])
    check(open_images(f"{folder}:train"), images[:25])
    assert torch.equal(open_images(f"{folder}:test").images(range(5)), images[25:])
    data, held_out = load_labelled_images(folder), load_labelled_images(folder, train=False)
    assert (data.name, data.names[0], data.feature_extractor) == ("cifar10", "airplane", None)
    assert data.labels.dtype == torch.int64
    assert torch.equal(torch.cat([data.images, held_out.images]), images)
    assert torch.equal(torch.cat([data.labels, held_out.labels]), labels.long())
    for part, loaded in (("train", data), ("test", held_out)):
        source = open_images(f"{folder}:{part}")
        assert torch.equal(source.labels.index, loaded.labels)
        assert source.labels.names == loaded.names


def test_cifars_python_version_is_refused(tmp_path):
    """Its files are pickles."""
    for name in names(""):
        (tmp_path / name).write_bytes(b"\x80\x02}.")
    for read in (load_labelled_images, lambda folder: open_images(str(folder))):
        with pytest.raises(ValueError, match=r"data_batch_1\.bin in .*python version.*binary version"):
            read(tmp_path)


def test_other_folders_hold_fashion_or_are_named(idx_folder, tmp_path):
    data, resized = load_labelled_images(idx_folder), load_labelled_images(idx_folder, side=6)
    assert torch.equal(data.images, load_idx_images(idx_folder).images)
    assert (data.name, data.licence, data.feature_extractor) == ("fashion", "MIT", "fashion-classifier")
    assert (resized.images.shape, resized.licence, resized.feature_extractor) == ((200, 1, 6, 6), "MIT", None)
    assert torch.equal(resized.images, center_crop_batch(data.images, 6))
    assert torch.equal(open_images(str(idx_folder)).labels.index, load_idx_images(idx_folder).labels)
    with pytest.raises(ValueError, match=r"holds no images; expected a folder or a \.zip of images.*IDX files"):
        load_labelled_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [(bytes(3072), "truncated or not CIFAR-10"), (b"", "truncated"), (b"\x0b" + bytes(3072), "holds the label 11")],
)
def test_spoiled_binaries_of_cifar_are_named(content, match, tmp_path):
    for name in names(".bin"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_1.bin .*{match}"):
        open_images(str(tmp_path))
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match=r"no test_batch.bin in"):
        open_images(f"{tmp_path}:test")


def test_fashion_is_read_from_its_official_files(idx_folder):
    check(open_images(str(idx_folder)), load_idx_images(idx_folder).images)
    check(open_images(f"{idx_folder}:test"), load_idx_images(idx_folder, train=False).images)


def test_a_side_is_a_square_around_the_middle_by_lanczos(pixels, tmp_path):
    """The same of files, of zips and of tensors; cut and resized by PIL, image by image."""
    source = open_images(str(write_folder(tmp_path / "folder", pixels)), side=4)
    full = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    expected = [np.asarray(one.crop((1, 0, 6, 5)).resize((4, 4), Image.Resampling.LANCZOS)) for one in full]
    check(source, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert torch.equal(center_crop_batch(pixels, 4), source.images(range(11)))
    other = [pixels[0], pixels[1][:, :4, :4], *pixels[2:]]
    mixed = open_images(str(write_folder(tmp_path / "mixed", other)), side=4).images(range(11))
    assert torch.equal(mixed[1], pixels[1][:, :4, :4])


def test_a_picture_of_another_size_is_named(pixels, tmp_path):
    source = open_images(str(write_folder(tmp_path, [pixels[0], pixels[1][:, :4], *pixels[2:]])))
    with pytest.raises(ValueError, match=r"00/001.png has 4 x 7 pixels, the first image 5 x 7; --side"):
        source.images(range(5))


@pytest.fixture(params=["folder", "zip"])
def damaged(request, pixels, tmp_path):
    """Pictures of which two are damaged, the first among them."""
    write_folder(tmp_path / "folder", pixels)
    content = (tmp_path / "folder" / "01" / "005.png").read_bytes()
    (tmp_path / "folder" / "00" / "000.png").write_bytes(b"no picture")
    (tmp_path / "folder" / "01" / "005.png").write_bytes(content[: len(content) // 2])
    if request.param == "folder":
        return tmp_path / "folder"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in (tmp_path / "folder").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "folder"))
    return tmp_path / "x.zip"


def test_damaged_pictures_are_named_and_counted(damaged):
    with pytest.raises(ValueError, match=r"2 of 11 images cannot be read, first 00/000.png: .*by --skip-corrupt"):
        open_images(str(damaged)).images(range(3))


def test_damaged_pictures_are_left_out_by_skip_corrupt(damaged, pixels):
    source = open_images(str(damaged), skip_corrupt=True)
    assert source.shape == (3, 5, 7)
    found = [source.images(rows) for rows in (range(1), range(1, 6), range(6, 11))]
    assert [len(part) for part in found] == [0, 4, 5]
    assert torch.equal(torch.cat(found), pixels[[1, 2, 3, 4, 6, 7, 8, 9, 10]])
    assert set(source.skipped) == {"00/000.png", "01/005.png"}


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((5, 7), 1000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x.png: its mode is I;16, expected 8 bits a channel"):
        _ = open_images(str(tmp_path)).shape


def test_digests_follow_the_content(pixels, tmp_path, monkeypatch):
    same = [open_images(str(write_folder(tmp_path / name, pixels))) for name in "ab"]
    other = open_images(str(write_folder(tmp_path / "c", pixels.flip(0))))
    assert same[0].digest() == same[1].digest() != other.digest()
    assert open_images(str(tmp_path / "a"), side=4).digest() != same[0].digest()

    taken = []
    hashed = digests.hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *a: (taken.append(a), hashed(*a))[1])
    before = same[0].digest()
    assert taken == []  # the files are as they were
    (tmp_path / "a" / "00" / "001.png").write_bytes(png(pixels[0]))
    assert open_images(str(tmp_path / "a")).digest() != before
    assert len(taken) == 11


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nowhere", "nowhere does not exist: .* \\(test images by :test\\)$"),
        ("fashion-mnist", r"Fashion-MNIST's four \.gz files are at https://"),
        ("cifar-10-batches-bin", "CIFAR-10's binary version is at https://"),
        ("nowhere:test", "nowhere does not exist"),
        ("empty", "empty holds no images; expected a folder or a .zip"),
        ("pictures:test", "pictures:test: only"),
        ("pictures/00/000.png", "pictures/00/000.png is one file .*: give its folder, pictures/00"),
        ("idx/train-images-idx3-ubyte.gz", "ubyte.gz is one file .*: give its folder, idx"),
        ("cifar/data_batch_1.bin", "data_batch_1.bin is one file .*: give its folder, cifar"),
        ("spoiled.zip", "spoiled.zip cannot be read as a zip"),
        ("none.zip", "none.zip holds no images"),
    ],
)
def test_sources_that_cannot_be_are_named(source, match, pixels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "pictures", pixels)
    for file in ("idx/train-images-idx3-ubyte.gz", "cifar/data_batch_1.bin"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    (tmp_path / "spoiled.zip").write_bytes(b"no zip")
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    with pytest.raises(ValueError, match=match):
        open_images(source)


def test_images_are_told_from_models_and_runs(pixels, idx_folder, tiny_teacher, tmp_path, monkeypatch):
    assert is_images(str(idx_folder))
    assert is_images(f"{idx_folder}:test")
    assert is_images(str(write_folder(tmp_path / "pictures", pixels)))
    assert is_images(str(write_zip(tmp_path / "x.zip", pixels)))
    assert not is_images(str(tiny_teacher))
    assert not is_images("fashion")
    run = write_folder(tmp_path / "run" / "samples", pixels).parent
    assert is_images(str(run))
    for marks in (["student/config.json"], ["config.toml", "metrics.jsonl"]):  # a finished and an interrupted run
        for name in marks:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).touch()
        assert not is_images(str(run))
        with pytest.raises(ValueError, match="run is a model's or a run's folder"):
            open_images(str(run))
        for name in marks:
            (run / name).unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_images("~/pictures")
    check(open_images("~/pictures"), pixels)
