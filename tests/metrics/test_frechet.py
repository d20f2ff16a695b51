import math
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dmdistill.metrics.frechet import (
    Moments,
    Statistics,
    accumulate_moments,
    frechet_distance,
    load_edm_statistics,
    load_statistics,
    save_statistics,
)
from helpers.damage import damage
from helpers.feature_statistics import feature_statistics


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(d, seed, *, rank=None):
    factor = draw(d, rank or d, seed=seed)
    return Statistics(draw(d, seed=seed + 100), factor @ factor.T, 1000)


def flat(x):
    return x.flatten(1)


def matrix_sqrt(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def test_diagonal_covariances_in_closed_form():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2."""
    m_a, m_b, s_a, s_b = draw(5, seed=1), draw(5, seed=2), draw(5, seed=3).abs(), draw(5, seed=4).abs()
    a, b = Statistics(m_a, (s_a**2).diag(), 9), Statistics(m_b, (s_b**2).diag(), 9)
    expected = float((m_a - m_b).square().sum() + (s_a - s_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_two_dimensions_in_closed_form():
    """Of a 2x2 product P, tr P^(1/2) = (tr P + 2 det(P)^(1/2))^(1/2)."""
    a, b = gaussian(2, 1), gaussian(2, 2)
    product = a.covariance @ b.covariance
    overlap = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_the_symmetric_form_of_the_root():
    """tr (C_a C_b)^(1/2) = tr (C_a^(1/2) C_b C_a^(1/2))^(1/2)."""
    a, b = gaussian(16, 1), gaussian(16, 2)
    overlap = matrix_sqrt(matrix_sqrt(a.covariance) @ b.covariance @ matrix_sqrt(a.covariance)).trace()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    features = torch.nn.Flatten()
    features.num_features = 24
    metric = fid.FrechetInceptionDistance(features)
    x, y = draw(300, 2, 3, 4, seed=1).exp(), draw(200, 2, 3, 4, seed=2)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert frechet_distance(feature_statistics(flat, [x]), feature_statistics(flat, [y])) == pytest.approx(
        float(metric.compute()), rel=1e-10
    )


def test_rotation_leaves_the_distance():
    a, b = gaussian(12, 1), gaussian(12, 2, rank=5)
    q = torch.linalg.qr(draw(12, 12, seed=3)).Q
    turned = [Statistics(q @ s.mean, q @ s.covariance @ q.T, s.count) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("count", [2, 10, 100, 1000])
def test_zero_for_the_same_whatever_the_rank(count):
    statistics = feature_statistics(flat, [draw(count, 128).relu()])
    assert 0 <= frechet_distance(statistics, statistics) < 1e-8


def test_covariances_that_lack_rank():
    """A deterministic feature against the same, spread: the distance is the spread; nothing at all: |difference|^2."""
    spread, none = torch.eye(64, dtype=torch.float64), torch.zeros(64, 64, dtype=torch.float64)
    zero, one = torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
    assert frechet_distance(Statistics(zero, none, 2), Statistics(zero, spread, 2)) == pytest.approx(64)
    assert frechet_distance(Statistics(zero, none, 2), Statistics(one, none, 2)) == pytest.approx(64)
    factor = torch.linalg.qr(draw(64, 9)).Q  # an orthonormal projection P: (P I)^(1/2) = P, whose trace is 9
    flattened = Statistics(zero, factor @ factor.T, 2)
    assert frechet_distance(flattened, Statistics(zero, spread, 2)) == pytest.approx(64 + 9 - 2 * 9, abs=1e-10)


@pytest.mark.parametrize("size", [1, 7, 256])
def test_streamed_equals_all_at_once(size):
    x = draw(600, 3, 2, 4).float() + 3
    whole, streamed = feature_statistics(flat, [x]), feature_statistics(flat, iter(x.split(size)))
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(streamed.covariance, whole.covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.covariance, torch.cov(flat(x).double().T), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.mean, flat(x).double().mean(0), rtol=1e-10, atol=0)
    assert streamed.count == whole.count == 600
    assert whole.mean.dtype == whole.covariance.dtype == torch.float64


def test_grows_with_noise_and_with_blur():
    torch.manual_seed(0)
    features = torch.nn.Sequential(
        torch.nn.Conv2d(1, 24, 5, stride=3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )
    x = draw(500, 1, 24, 20).float()
    reference = feature_statistics(features, x[:250].split(64))

    def distance(images):
        return frechet_distance(reference, feature_statistics(features, images.split(64)))

    noise = draw(250, 1, 24, 20, seed=1).float()
    noisy = [distance(x[250:] + level * noise) for level in (0, 1, 2, 4)]
    blurred = [distance(F.avg_pool2d(x[250:], size, 1, size // 2)) for size in (1, 3, 5)]
    assert noisy == sorted(noisy)
    assert blurred == sorted(blurred)
    assert 2 * noisy[0] < noisy[1]
    assert 2 * blurred[0] < blurred[1]


def test_round_trip(tmp_path):
    statistics = feature_statistics(flat, [draw(50, 3, 2)])
    save_statistics(tmp_path / "new" / "reference.safetensors", statistics)
    loaded = load_statistics(tmp_path / "new" / "reference.safetensors")
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance)
    assert loaded.count == 50
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["reference.safetensors"]


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "reference.safetensors"
    with pytest.raises(ValueError, match=r"reference\.safetensors"):
        load_statistics(path)
    save_statistics(path, feature_statistics(flat, [draw(50, 3, 2)]))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"reference\.safetensors") as error:
        load_statistics(path)
    assert "\n" not in str(error.value)
    save_file({"mean": torch.zeros(3), "weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"holds mean \(3,\), weight \(3,\)"):
        load_statistics(path)
    save_file({"mean": torch.zeros(3), "covariance": torch.zeros(3, 4), "count": torch.tensor(2)}, path)
    with pytest.raises(ValueError, match="expected"):
        load_statistics(path)


def test_features_without_statistics_are_refused():
    with pytest.raises(ValueError, match="1 images"):
        feature_statistics(flat, [draw(1, 3, 2)])
    with pytest.raises(ValueError, match="0 images"):
        feature_statistics(flat, [])
    with pytest.raises(ValueError, match="NaN"):
        feature_statistics(flat, [draw(4, 3, 2).log()])
    with pytest.raises(ValueError, match=r"\(4, 3, 2\)"):
        feature_statistics(lambda x: x, [draw(4, 3, 2)])
    with pytest.raises(ValueError, match="of 6 and of 8 features"):
        frechet_distance(gaussian(6, 0), gaussian(8, 0))


def moments(batches):
    return accumulate_moments(lambda batch: batch, batches)


def test_shares_add_up():
    """In any order, an empty one among them, and after a journey between processes."""
    x = draw(600, 24).float() + 3
    whole = moments([x]).statistics()
    shares = [moments(share.split(13)) for share in x.split([101, 199, 300])]
    for parts in (shares, [Moments(), *reversed(shares)], pickle.loads(pickle.dumps(shares))):
        found = sum(parts, Moments()).statistics()
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-10, atol=1e-12)
        assert found.count == 600
    assert [share.count for share in shares] == [101, 199, 300]


def test_rounding_does_not_show():
    """Features far from 0, singly or all at once: the distance differs by less than 1e-9."""
    x, y = draw(400, 16).float() + 30, draw(400, 16, seed=1).float() + 30
    distances = [
        frechet_distance(moments(x.split(size)).statistics(), moments([y]).statistics()) for size in (1, 7, 400)
    ]
    assert max(distances) - min(distances) < 1e-9


def test_what_does_not_add_is_refused():
    sums = moments([draw(5, 3)])
    with pytest.raises(ValueError, match="4 features per image after 3"):
        sums.add(draw(5, 4))
    with pytest.raises(ValueError, match="sums of 3 and of 4 features"):
        _ = sums + moments([draw(5, 4)])
    assert sums.count == 5


def test_edms_references(tmp_path):
    """mu and sigma as EDM's fid.py writes them; their count is not known, here or after a round trip."""
    statistics = feature_statistics(flat, [draw(50, 3, 2)])
    np.savez(tmp_path / "ref.npz", mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    loaded = load_edm_statistics(tmp_path / "ref.npz")
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance)
    assert loaded.count is None
    save_statistics(tmp_path / "stored.safetensors", loaded)
    assert load_statistics(tmp_path / "stored.safetensors").count is None


def test_damaged_references_are_named(tmp_path):
    path = tmp_path / "ref.npz"

    def refused(match):
        with pytest.raises(ValueError, match=match) as caught:
            load_edm_statistics(path)
        assert "ref.npz" in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("does not exist")
    good = {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(path, **good)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:40], b"", b"<html>", pickle.dumps(good)):
        path.write_bytes(content)
        refused("damaged, or no .npz")
    for wrong, match in (
        ({"mean": np.zeros(3)}, "damaged, or no .npz with mu and sigma"),
        (good | {"sigma": np.array([object()])}, "allow_pickle"),
        (good | {"sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\), expected \(D,\) and \(D, D\)"),
        (good | {"mu": np.full(3, np.nan)}, "contains NaN"),
    ):
        np.savez(path, **wrong)
        refused(match)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    refused("damaged, or no .npz")


@pytest.mark.parametrize("kind", ["edm", "ours"])
def test_no_damage_gives_other_statistics(kind, tmp_path):
    """A damaged file is an error of one line that names it, or harmless, as in a file's date."""
    statistics, rng = feature_statistics(flat, [draw(50, 4, 3)]), random.Random(0)
    if kind == "edm":
        path, load = tmp_path / "x.npz", load_edm_statistics
        np.savez(path, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    else:
        path, load = tmp_path / "x.safetensors", load_statistics
        save_statistics(path, statistics)
    content, errors = path.read_bytes(), []
    for damaged in [damage(content, rng) for _ in range(150)]:
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except ValueError as error:
            errors.append(str(error))
        else:
            assert torch.equal(loaded.mean, statistics.mean)
            assert torch.equal(loaded.covariance, statistics.covariance)
    assert len(errors) > 120
    assert all(str(path) in line and "\n" not in line for line in errors)


def test_what_unpacks_to_far_more_than_its_size_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(3000), sigma=np.zeros((3000, 3000)))
    with pytest.raises(ValueError, match=r"bomb\.npz .* would unpack to"):
        load_edm_statistics(tmp_path / "bomb.npz")
