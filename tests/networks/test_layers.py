"""Resampling, embeddings and norms are what their formulas say."""

import math

import pytest
import torch
from torch import nn

from dmdistill.networks.layers import (
    ConvolutionDown,
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    group_norm,
)


@pytest.mark.parametrize("endpoint", [True, False])
def test_the_embedding_is_a_clock_of_many_speeds(endpoint):
    """sin and cos of noise * 10000^(-i/n), sines first; n is one less than the speeds where the last is 1/10000."""
    noise = torch.tensor([-1.3, 0.0, 2.5])
    found = PositionalEmbedding(10, endpoint=endpoint)(noise)
    for row, value in zip(found, noise.tolist(), strict=True):
        angles = [value * 10000 ** (-i / (4 if endpoint else 5)) for i in range(5)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


def test_fourier_features_are_turns_of_kept_frequencies():
    torch.manual_seed(0)
    embedding = FourierEmbedding(6)
    assert list(embedding.state_dict()) == ["freqs"]
    embedding.freqs.copy_(torch.tensor([0.25, 1.0, -0.5]))
    found = embedding(torch.tensor([1.0, 0.5]))
    expected = [[1, 0, 0, 0, 1, -1], [math.sqrt(0.5), 0, -1, math.sqrt(0.5), -1, 0]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_fourier_frequencies_are_spread_by_sixteen():
    torch.manual_seed(0)
    assert FourierEmbedding(20000).freqs.std() == pytest.approx(16, rel=0.03)


def test_resampling_is_a_box():
    x = torch.randn(2, 3, 4, 6)
    down, up = Resample("down"), Resample("up")
    box = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(down(x), box)
    torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(down(up(x)), x)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_the_short_way_of_the_box_is_exact(direction):
    x, resample = torch.randn(2, 3, 4, 6), Resample(direction)
    short = resample(x)
    resample.box = False
    torch.testing.assert_close(resample(x), short)


def test_the_long_filter_is_a_matrix_on_each_side():
    """Row i of halving weighs pixels 2 i - 1 to 2 i + 2 by 1, 3, 3, 1 eighths, with zeros beyond the border."""

    def halving(size):
        matrix = torch.zeros(size // 2, size)
        for i in range(size // 2):
            for j, tap in enumerate([1, 3, 3, 1]):
                if 0 <= 2 * i - 1 + j < size:
                    matrix[i, 2 * i - 1 + j] = tap / 8
        return matrix

    x, small = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 2, 3)
    taps = (1, 3, 3, 1)
    torch.testing.assert_close(Resample("down", taps)(x), halving(4) @ x @ halving(6).T)
    torch.testing.assert_close(Resample("up", taps)(small), 4 * halving(4).T @ small @ halving(6))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_convolution_down_is_a_convolution_of_a_wider_image_then_a_halving(taps):
    torch.manual_seed(0)
    layer, x = ConvolutionDown(3, 5, taps), torch.randn(2, 3, 4, 6)
    border = len(taps) // 2 - 1
    wide = torch.nn.functional.conv2d(torch.nn.functional.pad(x, [border + 1] * 4), layer.weight, layer.bias)
    inner = Resample("down", taps, padded=False)(wide)
    assert inner.shape == (2, 5, 2, 3)
    torch.testing.assert_close(layer(x), inner)


@pytest.mark.parametrize("taps", [(1,), (1, 2, 1), (), (1, -1)])
def test_filters_that_do_not_resample_are_refused(taps):
    with pytest.raises(ValueError, match=r"resample_filter \[.*\]: expected an even number of taps"):
        Resample("down", taps)


@pytest.mark.parametrize(
    ("channels", "least", "groups"), [(256, 4, 32), (144, 4, 24), (48, 16, 3), (20, 16, 1), (2, 4, 1)]
)
def test_groups_divide_the_channels(channels, least, groups):
    assert group_norm(channels, least).num_groups == groups


@pytest.mark.parametrize("least", [4, 16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_group_norm_in_bf16_is_that_of_fp64_within_rounding(memory_format, least):
    torch.manual_seed(0)
    x = torch.randn(2, 32, 6, 5).to(torch.bfloat16, memory_format=memory_format).requires_grad_()
    norm, weight = group_norm(32, least), torch.randn(2, 32, 6, 5).bfloat16()
    exact = nn.GroupNorm(32 // least, 32, eps=norm.eps).double()
    found, expected = norm(x), exact(double := x.detach().double().requires_grad_())
    assert (found.dtype, found.stride()) == (x.dtype, x.stride())
    gradients = torch.autograd.grad(found, [x, *norm.parameters()], weight)
    theirs = torch.autograd.grad(expected, [double, *exact.parameters()], weight.double())
    for one, other in zip([found, *gradients], [expected, *theirs], strict=True):
        assert (one - other).norm() < 0.01 * other.norm()
