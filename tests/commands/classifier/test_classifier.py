"""`dmdistill classifier`: the folder it writes is a feature extractor with the statistics of its images."""

import json

import pytest
import torch

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


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--epochs 0", "--epochs 0"),
        ("--batch 201", "--batch 201, expected at most 200"),
        ("--lr 0", "--lr 0"),
        ("--seed -1", "--seed -1"),
    ],
)
def test_bad_settings_are_one_line(arguments, match, idx_folder, tmp_path, error_line):
    line = error_line(
        "classifier", "--data", idx_folder, "--out", tmp_path / "out", *arguments.split(), "--device", "cpu"
    )
    assert match in line
    assert not (tmp_path / "out").exists()
