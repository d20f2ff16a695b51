"""`dmdistill classifier`: the folder it writes is a feature extractor with the statistics of its images."""

import json

import pytest
import torch

from dmdistill.commands.classifier.command import load_parts
from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.cli import main
from dmdistill.commands.options import ComputeOptions
from dmdistill.data.idx_images import load_idx_images
from dmdistill.data.image_tensors import from_uint8
from dmdistill.metrics.classifier_features import load_classifier_features
from helpers.feature_statistics import feature_statistics, frechet_to_real

CPU = torch.device("cpu")


def test_a_classifier_loads_with_the_statistics_of_its_images(feature_extractor, idx_folder):
    classifier = load_classifier_features(str(feature_extractor), CPU)
    train, test = (from_uint8(load_idx_images(idx_folder, train=train).images) for train in (True, False))
    again = feature_statistics(classifier.classifier.features, train.split(70))
    assert classifier.reference.count == again.count == 200
    torch.testing.assert_close(classifier.reference.mean, again.mean)
    torch.testing.assert_close(classifier.reference.covariance, again.covariance)
    assert frechet_to_real(classifier, train.split(70)) == pytest.approx(0, abs=1e-6)
    config = json.loads((feature_extractor / "config.json").read_text())
    assert config["frechet_test_images"] == pytest.approx(frechet_to_real(classifier, [test]), rel=1e-4)
    with torch.no_grad():
        classes = classifier.classifier(test).argmax(1)
    labels = load_idx_images(idx_folder, train=False).labels
    assert config["accuracy"] == pytest.approx(float((classes == labels).double().mean()))


def test_pictures_without_test_images_have_a_tenth_held_out(class_pictures, tmp_path):
    """Of 20 pictures 2; another seed holds out others, and none is in both parts."""
    parts = []
    for seed in (0, 0, 1):
        config = ClassifierConfig(data=class_pictures, side=10, seed=seed, compute=ComputeOptions(device="cpu"))
        train, test = load_parts(config)
        assert (len(train), len(test), train.images.shape[2:]) == (18, 2, (10, 10))
        assert train.names == test.names == tuple(f"class-{label}" for label in range(10))
        together = torch.cat([train.images, test.images]).flatten(1)
        assert len(together.unique(dim=0)) == 20
        parts.append(test)
    assert torch.equal(parts[0].images, parts[1].images)
    assert not torch.equal(parts[0].images, parts[2].images)


def test_a_classifier_of_pictures_measures_such_pictures(class_pictures, tmp_path):
    """In its own features, without any other weights."""
    main(["classifier", "--data", str(class_pictures), "--out", str(tmp_path / "own"), "--batch", "6", "--epochs", "1"])
    classifier = load_classifier_features(str(tmp_path / "own"), CPU)
    assert classifier.reference.count == 18
    assert json.loads((tmp_path / "own" / "config.json").read_text())["test_images"] == 2
    main(["evaluate", str(class_pictures), "--feature-extractor", str(tmp_path / "own"), "--device", "cpu"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--epochs 0", "--epochs 0"),
        ("--batch 201", "--batch 201, expected at most 200"),
        ("--lr 0", "--lr 0"),
        ("--seed -1", "--seed -1"),
        ("--side 2", "--side 2"),
    ],
)
def test_bad_settings_are_one_line(arguments, match, idx_folder, tmp_path, error_line):
    line = error_line(
        "classifier", "--data", idx_folder, "--out", tmp_path / "out", *arguments.split(), "--device", "cpu"
    )
    assert match in line
    assert not (tmp_path / "out").exists()
