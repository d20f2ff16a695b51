"""`dmdistill classifier`: train a small classifier as feature extractor, with the statistics of real images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.options import check, option_values
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.image_sources import has_test_images
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.data.training_set import load_labelled_images
from dmdistill.io.atomic import atomic_write, check_writable, write_json
from dmdistill.io.checksums import add_checksum
from dmdistill.io.console import say
from dmdistill.io.folders import check_new_folder
from dmdistill.io.weights import save_weights
from dmdistill.metrics.classifier_features import ClassifierFeatures
from dmdistill.metrics.frechet import accumulate_moments, frechet_distance, save_statistics
from dmdistill.models.cards import classifier_card
from dmdistill.networks.image_classifier import Classifier
from dmdistill.training.progress import progress_bar

__all__ = ["train_classifier"]

EVALUATION_BATCH = 500


def train_classifier(config: ClassifierConfig) -> ClassifierFeatures:
    """Train a classifier; write model.safetensors, config.json, reference.safetensors and README.md to config.out."""
    check(config)
    check_new_folder(config.out, "choose another --out")
    check_writable(config.out / "model.safetensors")
    data, held_out = load_parts(config)
    if config.batch > len(data):
        raise ValueError(f"--batch {config.batch}, expected at most {len(data)}, the number of images")
    device, precision = setup_compute(config.compute)
    torch.manual_seed(config.seed)
    network = {"in_channels": data.images.shape[1], "classes": len(data.names)}
    classifier = Classifier(**network).to(device).to(memory_format=torch.channels_last)  # pyright: ignore
    fit(classifier, data, config, device, precision)
    classifier.eval().requires_grad_(False)
    extractor = describe_real_images(f"{data.name}-classifier", classifier, data, device)
    test_moments = accumulate_moments(extractor, held_out.images.split(EVALUATION_BATCH))
    results = {
        "accuracy": measure_accuracy(classifier, held_out, device),
        "test_images": len(held_out),
        "frechet_test_images": frechet_distance(test_moments.statistics(), extractor.reference),
    }
    save(extractor, network, results, config)
    say(
        f"accuracy {results['accuracy']:.2%} on {len(held_out)} test images, whose Frechet distance to the {len(data)} "
        f"training images is {results['frechet_test_images']:.4g}; classifier in {config.out}"
    )
    return extractor


def load_parts(config: ClassifierConfig) -> tuple[LabelledImages, LabelledImages]:
    """Load the training and the test images; a tenth of the images, drawn by --seed, where a set has no test images."""
    data = load_labelled_images(config.data, side=config.side)
    if not data.names:
        raise ValueError(f"--data {config.data}: no labels: put the images of each class in a folder of its own")
    if has_test_images(config.data):
        return data, load_labelled_images(config.data, train=False, side=config.side)
    if len(data) < 10:
        raise ValueError(f"--data {config.data}: {len(data)} images, expected at least 10: a tenth is held out")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))
    test, train = (select_images(data, rows) for rows in order.tensor_split([len(data) // 10]))
    return train, test


def select_images(data: LabelledImages, rows: Tensor) -> LabelledImages:
    """Return the images with these numbers."""
    return replace(data, images=data.images[rows], labels=data.labels[rows])


def fit(
    classifier: Classifier,
    data: LabelledImages,
    config: ClassifierConfig,
    device: torch.device,
    precision: torch.dtype | None,
) -> None:
    """Minimise the cross-entropy of augmented images by AdamW with a one-cycle schedule."""
    rng = torch.Generator(device).manual_seed(config.seed)
    images, labels = data.images.to(device), data.labels.to(device)
    steps = config.epochs * (len(data) // config.batch)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)
    with progress_bar("training the classifier", steps) as advance:
        for _ in range(config.epochs):
            order = torch.randperm(len(data), generator=rng, device=device)
            for rows in order[: steps // config.epochs * config.batch].split(config.batch):
                with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
                    logits = classifier(augment(from_uint8(images[rows]), rng))
                loss = F.cross_entropy(logits.float(), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(schedule.last_epoch)


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shift a batch by up to two pixels in each direction, and flip half of its images."""
    flips = torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device) < 0.5
    dy, dx = torch.randint(5, (2,), generator=rng, device=x.device).tolist()
    height, width = x.shape[2:]
    padded = F.pad(torch.where(flips, x.flip(3), x), (2, 2, 2, 2), value=-1)
    return padded[:, :, dy : dy + height, dx : dx + width]


def describe_real_images(
    name: str, classifier: Classifier, data: LabelledImages, device: torch.device
) -> ClassifierFeatures:
    """Build the feature extractor of a classifier, with the statistics of real images in its features."""

    def features(images: Tensor) -> Tensor:
        return classifier.features(from_uint8(images.to(device)))

    moments = accumulate_moments(features, data.images.split(EVALUATION_BATCH))
    sides = data.images.shape[2:]
    return ClassifierFeatures(name, classifier, moments.statistics(), sides[0] if sides[0] == sides[1] else None)


@torch.no_grad()
def measure_accuracy(classifier: Classifier, data: LabelledImages, device: torch.device) -> float:
    """Return the share of images whose class has the largest logit."""
    batches = data.images.split(EVALUATION_BATCH)
    classes = torch.cat([classifier(from_uint8(batch.to(device))).argmax(1).cpu() for batch in batches])
    return (classes == data.labels).double().mean().item()


def save(
    extractor: ClassifierFeatures, network: dict[str, Any], results: dict[str, Any], config: ClassifierConfig
) -> None:
    """Write the four files."""
    save_weights(config.out / "model.safetensors", extractor.classifier)
    save_statistics(config.out / "reference.safetensors", extractor.reference)
    resolution = {"resolution": extractor.resolution} if extractor.resolution is not None else {}
    about = {"kind": "feature_extractor", "name": extractor.name, "network": network, **resolution, **results}
    write_json(config.out / "config.json", add_checksum(about))
    with atomic_write(config.out / "README.md") as temporary:
        temporary.write_text(classifier_card(extractor, results, option_values(config)), encoding="utf-8")
