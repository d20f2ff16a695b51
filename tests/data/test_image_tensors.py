"""Image tensors: bytes, floats and grids."""

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.image_tensors import from_uint8, save_grid, to_uint8


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
