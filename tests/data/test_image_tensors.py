"""Official files in, pictures out."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.idx_images import load_idx_images, read_idx
from dmdistill.data.image_tensors import from_uint8, save_grid, to_uint8


@pytest.mark.parametrize("shape", [(7,), (4, 3, 5), (2, 3, 5, 4)])
def test_idx_files_are_read_whole(shape, tmp_path, idx_writer, rng):
    values = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    idx_writer(tmp_path / "x.gz", values)
    assert torch.equal(read_idx(tmp_path / "x.gz"), values)


def spoiled(good: bytes) -> dict[str, bytes]:
    """A good file's bytes, spoiled in every way met in practice."""
    plain = gzip.decompress(good)
    return {
        "download cut short": good[: len(good) // 2],
        "damaged": good[:40] + bytes(b ^ 0xFF for b in good[40:60]) + good[60:],
        "not gzip": b"<html>404</html>",
        "empty": b"",
        "empty inside": gzip.compress(b""),
        "header alone": gzip.compress(plain[:6]),
        "data cut short": gzip.compress(plain[:-1]),
        "data too long": gzip.compress(plain + b"\0"),
        "another type": gzip.compress(b"\0\0\x0d" + plain[3:]),
        "foreign": gzip.compress(b"hello world, this is text"),
    }


@pytest.mark.parametrize("damage", spoiled(gzip.compress(b"\0" * 99)))
def test_spoiled_idx_files_are_one_clear_line(damage, tmp_path, idx_writer, rng):
    file = tmp_path / "x.gz"
    idx_writer(file, torch.randint(256, (9, 5, 6), generator=rng, dtype=torch.uint8))
    file.write_bytes(spoiled(file.read_bytes())[damage])
    with pytest.raises(ValueError, match=r"x\.gz (cannot be read as|is not) an IDX file") as caught:
        read_idx(file)
    assert "\n" not in str(caught.value)


def test_the_data_set_is_images_with_their_labels(idx_folder):
    for train, count in ((True, 200), (False, 60)):
        data = load_idx_images(idx_folder, train=train)
        assert data.images.shape == (len(data), 1, 12, 12) == (count, 1, 12, 12)
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        part = "train" if train else "t10k"
        assert torch.equal(data.images[:, 0], read_idx(idx_folder / f"{part}-images-idx3-ubyte.gz"))
        assert torch.equal(data.labels, read_idx(idx_folder / f"{part}-labels-idx1-ubyte.gz").long())
        assert len(data.names) == 10


def test_missing_and_mismatched_files_are_named(tmp_path, idx_writer):
    with pytest.raises(ValueError, match=r"no train-images-idx3-ubyte\.gz in .*--data"):
        load_idx_images(tmp_path)
    idx_writer(tmp_path / "train-images-idx3-ubyte.gz", torch.zeros(4, 2, 3, dtype=torch.uint8))
    idx_writer(tmp_path / "train-labels-idx1-ubyte.gz", torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(4, 2, 3\) and labels \(5,\)"):
        load_idx_images(tmp_path)


def test_bytes_survive_floats():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert (from_uint8(every).min(), from_uint8(every).max()) == (-1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bytes_are_the_nearest_and_clipped(dtype):
    x = torch.tensor([-7.0, -1.0, 0.0, 1.0, 3.0], dtype=dtype)
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]  # 127.5 to the even
    fine = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    assert ((from_uint8(to_uint8(fine)) - fine).abs() <= 1 / 255 + 1e-6).all()


@pytest.mark.parametrize(("channels", "zoom"), [(1, 1), (3, 1), (1, 3), (3, 2)])
def test_a_grid_has_every_pixel_in_its_place(channels, zoom, tmp_path, rng):
    images = torch.randint(256, (7, channels, 4, 5), generator=rng, dtype=torch.uint8)
    save_grid(tmp_path / "deep" / "grid.png", from_uint8(images), columns=3, zoom=zoom)
    with Image.open(tmp_path / "deep" / "grid.png") as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        found = np.array(picture).reshape(picture.height, picture.width, channels)
    expected = np.full((3 * 5 - 1, 3 * 6 - 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        expected[row * 5 : row * 5 + 4, column * 6 : column * 6 + 5] = image.permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected.repeat(zoom, 0).repeat(zoom, 1))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["grid.png"]


def test_a_grid_is_made_from_parts_as_from_the_whole(tmp_path, rng):
    images = torch.rand(6, 1, 4, 5, generator=rng) * 2 - 1
    save_grid(tmp_path / "whole.png", images, columns=4)
    save_grid(tmp_path / "parts.png", images.split(4), columns=4)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "parts.png").read_bytes()
