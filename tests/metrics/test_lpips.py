import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dmdistill.metrics.lpips import LPIPS, L2Pool
from dmdistill.metrics.lpips_weights import load_lpips

SMALL = ((4, 1), (6, 2), (5, 1))


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(params=["max", "l2"])
def small(request):
    """Random weights, three blocks, both kinds of pooling: what holds for any weights is tested here."""
    torch.manual_seed(0)
    return LPIPS(resize=None, pooling=request.param, blocks=SMALL)


@pytest.fixture(scope="module")
def weight_file():
    folder = os.environ.get("DMDISTILL_ASSETS")
    path = Path(folder or ".") / "lpips_vgg16.safetensors"
    if folder is None or not path.is_file():
        pytest.skip("LPIPS's weights: set DMDISTILL_ASSETS to the folder of lpips_vgg16.safetensors")
    return path


@pytest.mark.parametrize("shape", [(2, 3, 17, 12), (4, 1, 9, 21)])
@pytest.mark.parametrize("resize", [None, 19])
def test_zero_for_the_same_and_symmetric(small, shape, resize):
    small.resize = resize
    x, y = draw(*shape), draw(*shape, seed=1)
    assert torch.equal(small(x, x), torch.zeros(shape[0]))
    assert small(x, y).shape == (shape[0],)
    assert (small(x, y) > 0).all()
    assert torch.equal(small(x, y), small(y, x))


def test_grey_is_the_same_in_every_channel(small):
    x, y = draw(2, 1, 11, 13), draw(2, 1, 11, 13, seed=1)
    torch.testing.assert_close(small(x, y), small(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_resizes_bilinearly(small):
    x, y = draw(2, 3, 11, 13), draw(2, 3, 11, 13, seed=1)
    expected = small(*(F.interpolate(image, (20, 20), mode="bilinear", align_corners=False) for image in (x, y)))
    small.resize = 20
    assert torch.equal(small(x, y), expected)


def test_stored_features_are_recomputed_ones(small):
    x, y = draw(2, 3, 11, 13).requires_grad_(), draw(2, 3, 11, 13, seed=1)
    features = small.features(y)
    assert torch.equal(small(x, features), small(x, y))
    from_features, from_images = (torch.autograd.grad(small(x, target).sum(), x)[0] for target in (features, y))
    assert torch.equal(from_features, from_images)


def test_gradient_reaches_the_first_image_only(small):
    x, y = draw(2, 3, 11, 13).requires_grad_(), draw(2, 3, 11, 13, seed=1).requires_grad_()
    assert not any(f.requires_grad for f in small.features(y))
    small(x, y).sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert y.grad is None
    assert not small.training
    assert all(p.grad is None and not p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("resize", [None, 7])
def test_gradient_is_the_finite_difference(small, resize):
    small.double().resize = resize
    x, y = draw(2, 1, 4, 5).double().requires_grad_(), draw(2, 1, 4, 5, seed=1).double()
    assert small(x, y).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: small(x, y), x, eps=1e-7, atol=1e-6)


def test_dead_places_have_finite_gradients(small):
    """Where a ReLU leaves nothing, a feature's length is 0, and the root's gradient infinite."""
    for name, p in small.named_parameters():
        if name.endswith("bias"):
            p.fill_(-0.3)
    x = draw(2, 3, 11, 13)
    x[:, :, :6] = -0.1
    x.requires_grad_()
    assert any((f.abs().sum(1) == 0).any() for f in small.features(x))
    small(x, draw(2, 3, 11, 13, seed=1)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_autocast_is_close_and_sums_in_fp32(small):
    x, y = draw(2, 3, 11, 13).requires_grad_(), draw(2, 3, 11, 13, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        half = small(x, y)
        assert torch.equal(small(y, y), torch.zeros(2))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, small(x, y), rtol=0.03, atol=0)
    half.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_wrong_images_are_refused(small):
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 9\)"):
        small(draw(2, 4, 8, 9), draw(2, 4, 8, 9))
    with pytest.raises(ValueError, match="differ in shape"):
        small(draw(2, 3, 8, 9), draw(1, 3, 8, 9))
    with pytest.raises(ValueError, match="differ in shape"):
        small(draw(2, 3, 8, 9), small.features(draw(2, 3, 9, 8)))
    with pytest.raises(ValueError, match="3x9 pixels"):
        small(draw(2, 3, 3, 9), draw(2, 3, 3, 9))


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(ValueError, match=r"lpips\.safetensors"):
        load_lpips(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"lpips\.safetensors") as error:
        load_lpips(path)
    assert "\n" not in str(error.value)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"features\.0\.bias is missing") as error:
        load_lpips(path)
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(weight_file, tmp_path):
    path = tmp_path / "lpips.safetensors"
    path.write_bytes(weight_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"lpips\.safetensors"):
        load_lpips(path)


def l2_pool(x):
    """L2 pooling again, window by window: the root of the mean square under Hann's window [1, 2, 1] / 4 each way."""
    hann = (1, 2, 1)
    padded = F.pad(x, (1, 1, 1, 1))
    height, width = (side // 2 + side % 2 for side in x.shape[2:])
    parts = [
        hann[i] * hann[j] / 16 * padded[:, :, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] ** 2
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(parts).sum(0).sqrt()


def plain_lpips(weights, x, y, pool=lambda f: F.max_pool2d(f, 2, 2)):
    """LPIPS again, from the file's tensors."""
    total = torch.zeros(len(x))
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((image.repeat(1, 3 // image.shape[1], 1, 1) - shift) / scale for image in (x, y))
    for head, layers in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]):
        if head > 0:
            a, b = pool(a), pool(b)
        for layer in layers:
            w, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            a, b = F.conv2d(a, w, bias, padding=1).relu(), F.conv2d(b, w, bias, padding=1).relu()
        unit_a, unit_b = (f / ((f**2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total += F.conv2d((unit_a - unit_b) ** 2, weights[f"lin{head}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_published_weights_against_a_plain_reimplementation(weight_file):
    weights, model = load_file(weight_file), load_lpips(weight_file, resize=None)
    for shape in [(2, 3, 40, 33), (3, 1, 28, 29)]:
        x, y = draw(*shape), draw(*shape, seed=1)
        torch.testing.assert_close(model(x, y), plain_lpips(weights, x, y), rtol=1e-5, atol=0)
    x, y = draw(2, 1, 28, 27), draw(2, 1, 28, 27, seed=1)
    expected = plain_lpips(weights, *(F.interpolate(image, (64, 64), mode="bilinear") for image in (x, y)))
    torch.testing.assert_close(load_lpips(weight_file, resize=64)(x, y), expected, rtol=1e-5, atol=0)


def test_l2_pooling_against_a_plain_reimplementation(weight_file):
    """The variant of DMD's authors."""
    weights, model = load_file(weight_file), load_lpips(weight_file, resize=None, pooling="l2")
    for shape in [(2, 3, 40, 33), (3, 1, 28, 29)]:
        x, y = draw(*shape), draw(*shape, seed=1)
        torch.testing.assert_close(model(x, y), plain_lpips(weights, x, y, l2_pool), rtol=1e-4, atol=0)


def test_l2_pooling_keeps_a_constant_and_its_gradient_at_zero():
    pool = L2Pool().double()
    inside = pool(torch.full((1, 2, 8, 8), -3.0, dtype=torch.float64))[:, :, 1:, 1:]
    torch.testing.assert_close(inside, torch.full_like(inside, 3.0))
    x = torch.zeros(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    pool(x).sum().backward()
    assert pool(x).shape == (1, 2, 3, 2)
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_published_weights_grow_with_noise(weight_file):
    model = load_lpips(weight_file, resize=None)
    x = F.interpolate(draw(3, 3, 8, 6), (48, 36), mode="bicubic").clamp(-1, 1) * 0.6
    noise = draw(3, 3, 48, 36, seed=1)
    distances = torch.stack([model(x, x + level * noise) for level in (0, 0.02, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all()


def test_a_mere_name_is_looked_for_in_the_assets_and_the_cache(tmp_path, monkeypatch):
    name = "lpips_vgg16.safetensors"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMDISTILL_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"--lpips-weights {name}.*{tmp_path}/assets.*{tmp_path}/cache"):
        load_lpips(Path(name))
    for folder in ("cache", "assets", "."):  # each comes before those that have the file already
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file({"foreign": torch.zeros(1)}, tmp_path / folder / name)
        file = name if folder == "." else f"{tmp_path / folder / name}"
        with pytest.raises(ValueError, match=f"^{file} is no LPIPS"):
            load_lpips(Path(name))
    monkeypatch.delenv("DMDISTILL_ASSETS")
    with pytest.raises(ValueError, match=r"\$DMDISTILL_ASSETS \(not set\)"):
        load_lpips(Path("other.safetensors"))
    with pytest.raises(ValueError, match=r"empty/other\.safetensors does not exist"):
        load_lpips(tmp_path / "empty" / "other.safetensors")


def test_other_weights_than_the_published_ones_are_named_once(weight_file, tmp_path, capsys):
    load_lpips(weight_file)
    assert capsys.readouterr().err == ""
    weights = load_file(weight_file)
    weights["features.0.bias"][3] += 1e-6
    for name in ("near", "near", "far"):
        save_file(weights, tmp_path / name)
        load_lpips(tmp_path / name)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" are ")[0] for line in lines] == [
        f"dmdistill: LPIPS weights {tmp_path / name}" for name in ("near", "far")
    ]
