"""A damaged feature extractor is an error, never another distance."""

import random
import shutil

import pytest
import torch

from dmdistill.io.atomic import write_safetensors
from dmdistill.io.weights import bundled_models
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import load_model
from helpers.damage import damage
from helpers.edits import edit_json

CPU = torch.device("cpu")
FILES = ("config.json", "model.safetensors", "reference.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled classifier."""
    return shutil.copytree(bundled_models()["fashion-classifier"], tmp_path / "classifier")


@pytest.mark.parametrize("name", FILES)
def test_no_damage_gives_other_features_or_another_reference(name, folder):
    good, file = load_classifier_features(str(folder), CPU), folder / name
    content, errors = file.read_bytes(), []
    rng = random.Random(0)
    for damaged in [damage(content, rng) for _ in range(40)]:
        file.write_bytes(damaged)
        try:
            opened = load_classifier_features(str(folder), CPU)
        except ValueError as error:
            errors.append(str(error))
        else:
            assert torch.equal(opened.reference.covariance, good.reference.covariance)
            for mine, other in zip(good.classifier.parameters(), opened.classifier.parameters(), strict=True):
                assert torch.equal(mine, other)
    assert len(errors) > 30 or name == "config.json"
    assert all(str(folder) in line and "\n" not in line for line in errors)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "teacher"}, "describes no classifier"),
        ({"name": ["x"]}, "name is \\['x'\\]"),
        ({"name": "[red]a b"}, "name is '\\[red\\]a b'"),
        ({"network": 3}, "network is 3"),
        ({"network": {"in_channels": 1}}, "network is"),
        ({"network": {"in_channels": 1, "classes": 10, "depth": 2}}, "network is"),
        ({"network": {"in_channels": 1.0, "classes": 10}}, "in_channels is 1.0"),
        ({"network": {"in_channels": 1, "classes": 10**9}}, "classes is 1000000000"),
        ({"network": {"in_channels": 1, "classes": 100_000}}, "model.safetensors.*head"),
        ({"network": {"in_channels": 1, "classes": 10, "width": 4096}}, "model.safetensors"),
        ({"network": {"in_channels": 3, "classes": 10}}, "model.safetensors.*stem"),
    ],
)
def test_impossible_values_are_refused_before_memory_is_taken(change, match, folder):
    edit_json(folder / "config.json", **change)
    with pytest.raises(ValueError, match=match):
        load_classifier_features(str(folder), CPU)


def test_a_reference_of_other_features_is_refused(folder):
    statistics = {"mean": torch.zeros(5), "covariance": torch.eye(5)}
    tensors = {name: tensor.double() for name, tensor in statistics.items()} | {"count": torch.tensor(9)}
    write_safetensors(folder / "reference.safetensors", tensors)
    with pytest.raises(ValueError, match=r"reference\.safetensors has 5 features, the classifier has 128"):
        load_classifier_features(str(folder), CPU)


def test_a_missing_classifier_has_a_hint():
    with pytest.raises(
        ValueError, match=r"^feature extractor fashion-clasifier: .*; did you mean 'fashion-classifier'\?"
    ):
        load_classifier_features("fashion-clasifier", CPU)


def test_a_classifier_is_no_model():
    with pytest.raises(ValueError, match="describes a classifier, expected a teacher or student: --feature-extractor"):
        load_model("fashion-classifier")


def test_bundled_weights_have_checksums():
    """One flipped bit of a mantissa is found."""
    files = [file for folder in bundled_models().values() for file in folder.glob("*.safetensors")]
    assert files
    for file in files:
        assert b'"crc32"' in file.read_bytes()[:20_000], file
