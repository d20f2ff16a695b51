"""Inception's file is code: which is run, where it is looked for, and what is done to an image before it."""

import hashlib
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from dmdistill.io.folders import cache_folder
from dmdistill.metrics import inception as module
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.features import ClassPredictor
from dmdistill.metrics.inception import FILE, Inception, load_inception
from dmdistill.metrics.resizing import resize_bicubic, resize_tensorflow
from helpers.http_server import Server


def draw(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Whole(nn.Module):
    """Of the parts of NVIDIA's file, at a size of nothing: layers, and the output layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 7, stride=9), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(5, 4)

    def forward(self, x):
        return self.output(self.layers(x).flatten(1))


class Layers(nn.Module):
    """Of the parts of the copy's."""

    def __init__(self):
        super().__init__()
        self.net = nn.Module()
        self.net.layers = Whole().layers

    def forward(self, x):
        return self.net.layers(x)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty ones for assets and cache, and no server."""
    monkeypatch.setenv("DMDISTILL_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DMDISTILL_INCEPTION_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "assets").mkdir()
    return tmp_path


def write(file, network, monkeypatch, constant="ORIGINAL"):
    """The network as TorchScript, whose hash is a known one from now on."""
    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(1, 3, 299, 299)), str(file))
    monkeypatch.setattr(module, constant, hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def refused(match, *arguments):
    with pytest.raises(ValueError, match=match) as caught:
        load_inception(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_found_in_order(folders, monkeypatch):
    """An explicit path, else the assets, else the cache."""
    path = write(folders / "own.pt", Whole, monkeypatch)
    with warnings.catch_warnings(action="error"):  # TorchScript is deprecated, which no user can change
        assert load_inception(path).output_weight is not None
    assert "without it `dmdistill evaluate` with --metrics frechet --feature" in refused("cannot be reached")
    write(cache_folder() / FILE, Whole, monkeypatch)
    load_inception()
    (folders / "assets" / FILE).write_bytes(b"another file")
    assert str(folders / "assets" / FILE) in refused("sha256")
    assert "own.pt" in refused("cannot be read", folders / "nothing" / "own.pt")


def test_downloaded_once_and_checked(folders, monkeypatch):
    content = write(folders / "source.pt", Whole, monkeypatch).read_bytes()
    server = Server()
    server.data = content[:-1] + b"!"
    monkeypatch.setenv("DMDISTILL_INCEPTION_URL", server.url)
    refused("sent something else: .*sha256")
    assert [file.name for file in cache_folder().iterdir() if file.suffix != ".lock"] == []
    server.data = content
    for _ in range(2):
        load_inception()
    assert len(server.asked) == 2
    server.close()


def test_nothing_else_is_run(folders, monkeypatch):
    path = write(folders / "own.pt", Whole, monkeypatch)
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert "it is code, and not run" in refused("own.pt has sha256", path)


@pytest.mark.parametrize(("name", "resize"), [("tensorflow", resize_tensorflow), ("clean", resize_bicubic)])
def test_what_the_layers_get(folders, monkeypatch, name, resize):
    network = load_inception(write(folders / "own.pt", Whole, monkeypatch), resizing=name)
    images = draw(9, 3, 17, 23)
    expected = network.layers((resize(images) - 128) / 128).flatten(1)
    assert network.id == f"inception-2015-12-05-{name}"
    torch.testing.assert_close(network(images), expected)
    assert network(images).shape == (9, 5)
    with pytest.raises(ValueError, match="expected one of tensorflow, clean"):
        Inception(network.layers, resizing="nearest")


def test_grey_is_three_equal_channels(folders, monkeypatch):
    network = load_inception(write(folders / "own.pt", Whole, monkeypatch))
    grey = draw(4, 1, 17, 23)
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="expected uint8"):
        network(grey / 255)


def test_probabilities_leave_out_the_bias(folders, monkeypatch):
    path = write(folders / "own.pt", Whole, monkeypatch)
    network = load_inception(path)
    torch.manual_seed(0)
    plain = Whole()
    features, probabilities = network.classify(draw(4, 3, 17, 23))
    assert isinstance(network, ClassPredictor)
    torch.testing.assert_close(probabilities, (features.clone() @ plain.output.weight.detach().T).softmax(1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


def test_the_copy_without_the_output_layer(folders, monkeypatch):
    network = load_inception(write(folders / "own.pt", Layers, monkeypatch, "LAYERS"))
    assert network(draw(4, 3, 17, 23)).shape == (4, 5)
    with pytest.raises(ValueError, match="lacks the output layer"):
        network.classify(draw(4, 3, 17, 23))


def test_the_known_file():
    folder = os.environ.get("DMDISTILL_ASSETS")
    if folder is None or not (Path(folder) / FILE).is_file():
        pytest.skip(f"Inception's weights: set DMDISTILL_ASSETS to the folder of {FILE}")
    network = load_inception()
    images = draw(2, 3, 32, 28)
    features = network(images)
    assert (features.shape, features.dtype) == ((2, 2048), torch.float32)
    assert (features >= 0).all()
    torch.testing.assert_close(network(images[1:]), features[1:], rtol=1e-3, atol=1e-4)


def test_a_classifier_is_a_feature_extractor():
    extractor = load_classifier_features("fashion-classifier", torch.device("cpu"))
    images = draw(5, 1, 28, 28)
    assert extractor(images).shape == (5, extractor.classifier.num_features)
    torch.testing.assert_close(extractor(images), extractor.classifier.features(images / 127.5 - 1))
    assert extractor.id.startswith("fashion-classifier-")
    assert extractor.id == load_classifier_features("fashion-classifier", torch.device("cpu")).id
    before = extractor.id
    extractor.classifier.stem.weight[0] += 1
    assert extractor.id != before
    assert not isinstance(extractor, ClassPredictor)
    with pytest.raises(ValueError, match="images have 3 channels, the classifier fashion-classifier takes 1"):
        extractor(images.expand(-1, 3, -1, -1))
