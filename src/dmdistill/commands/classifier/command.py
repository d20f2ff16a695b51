"""`dmdistill classifier`: train the judge, and describe the real images in its features."""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.options import check as check_options
from dmdistill.commands.options import require_at_least, require_positive
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.data.training_set import load_labelled
from dmdistill.io.atomic import atomic_write, check_writable, write_json
from dmdistill.io.folders import check_new_folder
from dmdistill.io.weights import save_weights
from dmdistill.metrics.classifier_features import ClassifierFeatures
from dmdistill.metrics.frechet import gather, save_statistics
from dmdistill.models.cards import classifier_card
from dmdistill.networks.image_classifier import Classifier
from dmdistill.training.progress import progress_bar

__all__ = ["train_classifier"]


def train_classifier(config: ClassifierConfig) -> ClassifierFeatures:
    """Train, then write model.safetensors, config.json, reference.safetensors and README.md to config.out."""
    check(config)
    data, held_out = load_labelled(config.data), load_labelled(config.data, train=False)
    if config.batch > len(data):
        raise ValueError(f"--batch {config.batch}, expected at most {len(data)}: there are no more images")
    device, precision = setup_compute(config.compute)
    torch.manual_seed(config.seed)
    network = {"in_channels": data.images.shape[1], "classes": len(data.names)}
    classifier = Classifier(**network).to(device).to(memory_format=torch.channels_last)  # pyright: ignore
    fit(classifier, data, config, device, precision)
    classifier.eval().requires_grad_(False)

    accuracy = measure_accuracy(classifier, held_out, device)
    feature_extractor = ClassifierFeatures(
        f"{data.name}-classifier", classifier, gather(classifier.features, batches(data, device))
    )
    real = feature_extractor.distance(batches(held_out, device))
    figures = {"accuracy": accuracy, "test_images": len(held_out), "frechet_test_images": real}
    save_weights(config.out / "model.safetensors", classifier)
    save_statistics(config.out / "reference.safetensors", feature_extractor.reference)
    write_json(
        config.out / "config.json",
        {"kind": "feature_extractor", "name": feature_extractor.name, "network": network, **figures},
    )
    with atomic_write(config.out / "README.md") as temporary:
        temporary.write_text(classifier_card(feature_extractor, figures, asdict(config)), encoding="utf-8")
    Console(highlight=False).print(
        f"accuracy {accuracy:.2%} on {len(held_out)} test images, whose Frechet distance to the {len(data)} training "
        f"images is {real:.4g}; judge in {config.out}",
        markup=False,
    )
    return feature_extractor


def check(config: ClassifierConfig) -> None:
    """ValueError where a number cannot be or the folder holds something, OSError where it could not be written."""
    check_options(config)
    require_at_least(config, 1, "epochs", "batch")
    require_positive(config, "lr")
    check_new_folder(config.out, "choose another --out")
    check_writable(config.out / "model.safetensors")


def fit(
    classifier: Classifier,
    data: LabelledImages,
    config: ClassifierConfig,
    device: torch.device,
    precision: torch.dtype | None,
) -> None:
    """Cross-entropy by AdamW and a one-cycle schedule, images shifted by up to two pixels and mirrored."""
    rng = torch.Generator(device).manual_seed(config.seed)
    images, labels = data.images.to(device), data.labels.to(device)
    steps = config.epochs * (len(data) // config.batch)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps)
    with progress_bar("training the judge", steps) as advance:
        for _ in range(config.epochs):
            order = torch.randperm(len(data), generator=rng, device=device)
            for rows in order[: steps // config.epochs * config.batch].split(config.batch):
                with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
                    logits = classifier(augmented(from_uint8(images[rows]), rng))
                loss = F.cross_entropy(logits.float(), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                advance(schedule.last_epoch)


def augmented(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each batch shifted by up to two pixels either way, each image mirrored or not."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device) < 0.5
    dy, dx = torch.randint(5, (2,), generator=rng, device=x.device).tolist()
    height, width = x.shape[2:]
    padded = F.pad(torch.where(mirrored, x.flip(3), x), (2, 2, 2, 2), value=-1)
    return padded[:, :, dy : dy + height, dx : dx + width]


def batches(data: LabelledImages, device: torch.device, size: int = 500) -> list[Tensor]:
    return [from_uint8(part.to(device)) for part in data.images.split(size)]


@torch.no_grad()
def measure_accuracy(classifier: Classifier, data: LabelledImages, device: torch.device) -> float:
    guesses = torch.cat([classifier(x).argmax(1).cpu() for x in batches(data, device)])
    return (guesses == data.labels).double().mean().item()
