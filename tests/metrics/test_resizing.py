"""Each way of resizing against its definition."""

import numpy as np
import pytest
import torch

from dmdistill.metrics.resizing import resize_bicubic, resize_tensorflow


def draw(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tensorflow_line(size, side):
    """TensorFlow 1's resize_bilinear of a line, without align_corners, as a matrix: side x size."""
    matrix = np.zeros((side, size))
    for i in range(side):
        place = i * size / side
        low = int(place)
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, size - 1)] += place - low
    return matrix


@pytest.mark.parametrize("shape", [(2, 3, 32, 28), (3, 1, 5, 7), (1, 3, 64, 401)])
def test_bilinear_is_tensorflows(shape):
    images = draw(*shape)
    rows, columns = tensorflow_line(shape[2], 299), tensorflow_line(shape[3], 299)
    expected = rows @ images.double().numpy() @ columns.T
    found = resize_tensorflow(images)
    assert found.shape == (*shape[:2], 299, 299)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)  # of 255: affine_grid's fp32


def test_bilinear_is_not_the_centred_one():
    """Half a pixel of difference, which is what makes or breaks a FID."""
    images = draw(1, 3, 32, 32)
    centred = torch.nn.functional.interpolate(images.float(), (299, 299), mode="bilinear")
    assert (resize_tensorflow(images) - centred).abs().max() > 50


@pytest.mark.parametrize("shape", [(2, 3, 51, 64), (3, 1, 30, 20)])
def test_bicubic_is_pillows_of_floats(shape):
    images = draw(*shape)
    found = resize_bicubic(images, 40)
    assert (found.dtype, found.shape) == (torch.float32, (*shape[:2], 40, 40))
    assert found.min() >= 0
    assert found.max() <= 255
    floats = torch.nn.functional.interpolate(images.double(), (40, 40), mode="bicubic", antialias=True)
    np.testing.assert_allclose(found.numpy(), floats.clamp(0, 255).numpy(), atol=1e-3)
    assert (found != found.round()).any()


@pytest.mark.parametrize("resize", [resize_bicubic, resize_tensorflow])
def test_a_constant_stays_and_only_bytes_are_taken(resize):
    grey = torch.full((2, 1, 9, 12), 77, dtype=torch.uint8)
    assert torch.allclose(resize(grey, 20).float(), torch.tensor(77.0), atol=1e-4)
    with pytest.raises(ValueError, match=r"float32 \(2, 1, 9, 12\), expected uint8"):
        resize(grey.float())
    with pytest.raises(ValueError, match=r"\(2, 2, 9, 12\)"):
        resize(grey.expand(-1, 2, -1, -1))
