"""One evaluation: what is looked at, compared with what, measured by what. All of it is checked before work begins."""

from __future__ import annotations

from pathlib import Path

import torch

from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import GeneratedImages, sampling_batch_size
from dmdistill.commands.evaluate.reference_cache import Reference
from dmdistill.commands.prompts import with_prompts
from dmdistill.data.image_sources import ImageSource, is_images, open_images
from dmdistill.data.prompt_files import read_prompts
from dmdistill.metrics.classifier_features import ClassifierFeatures, load_classifier_features
from dmdistill.metrics.frechet import load_edm_statistics
from dmdistill.metrics.requirements import METRICS, asked
from dmdistill.models.load import load_model
from dmdistill.models.model import Model

__all__ = ["EvaluationInputs"]

IMAGES = 10_000  # drawn where no number is given
BATCH = 500
DRAWN = "model:"  # before a reference that a teacher draws


class EvaluationInputs:
    """All that is given is opened and compared before anything is drawn.

    ValueError where something is missing, or where two things do not go together.

    Attributes:
        model: None where a set of images is measured. source: the images; `count` are looked at, `batch` at once.
        reference: or None. judge: or None. names: of METRICS. prompts: what the images show, where CLIP asks.
    """

    def __init__(self, config: EvaluateConfig, device: torch.device, precision: torch.dtype | None) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.model = None if is_images(config.model) else self.loaded(config.model)
        self.source = self.opened(config.model) if self.model is None else self.drawn(self.model, config.seed)
        self.count = min(config.images or len(self.source), len(self.source))
        self.batch = config.batch or (BATCH if self.model is None else sampling_batch_size(self.model, BATCH))
        self.reference = self.opened_reference()
        self.feature_extractor = self.found_judge()
        self.names = self.chosen()
        self.prompts = read_prompts(config.prompts) if config.prompts is not None and "clip" in self.names else []
        self.check_counts()
        self.check_shapes()

    def loaded(self, name: str) -> Model:
        model = with_prompts(load_model(name), self.config.prompts, device=self.device)
        model.to(self.device, self.precision)
        return model

    def drawn(self, model: Model, seed: int) -> GeneratedImages:
        return GeneratedImages(model, self.config.images or IMAGES, seed=seed, side=self.config.side)

    def opened(self, name: str) -> ImageSource:
        return open_images(name, side=self.config.side, skip_corrupt=self.config.skip_corrupt)

    def opened_reference(self) -> Reference | None:
        name = self.config.reference
        if name is None:
            return None
        if name.endswith(".npz"):
            return Reference(name, None, load_edm_statistics(Path(name)))
        if name.startswith(DRAWN):  # of noise of its own
            return Reference(name, self.drawn(self.loaded(name.removeprefix(DRAWN)), self.config.seed + 1))
        return Reference(name, self.opened(name))

    def found_judge(self) -> ClassifierFeatures | None:
        """That of --feature-extractor, else the model's own. ValueError where it judges images of other channels."""
        name = self.config.feature_extractor or (self.model.feature_extractor if self.model is not None else None)
        if name is None:
            return None
        feature_extractor = load_classifier_features(name, self.device)
        takes, channels = feature_extractor.classifier.stem.in_channels, self.source.shape[0]
        if takes != channels:
            raise ValueError(
                f"the judge {name} takes images of {takes} channel(s), {self.source.name}'s have {channels}"
            )
        return feature_extractor

    def chosen(self) -> list[str]:
        """The metrics asked for; else FID where there is a reference, and the judge's distance where there is none."""
        if self.config.metrics is not None:
            return asked(self.config.metrics)
        if self.reference is not None and self.config.feature_extractor is None:
            return ["fid"]
        return ["frechet"] if self.feature_extractor is not None else []

    def check_counts(self) -> None:
        """ValueError where there are too few images, or no images at all, for what is asked."""
        config, whose = self.config, self.source.name
        if config.images is not None and config.images > len(self.source):
            raise ValueError(f"--images {config.images}: {whose} holds {len(self.source)}")
        if "frechet" in self.names and self.feature_extractor is None:
            raise ValueError(f"--metrics frechet: {whose} has no judge; name one by --feature-extractor")
        real = self.reference.count if self.reference is not None else None
        if self.prompts and self.model is None and len(self.prompts) != len(self.source):
            raise ValueError(
                f"--prompts of {len(self.prompts)} prompts for {len(self.source)} images, expected one of each"
            )
        for name in self.names:
            for who, many in ((whose, self.count), (config.reference, real)):
                if many is not None and many < METRICS[name].least:
                    raise ValueError(f"--metrics {name} needs at least {METRICS[name].least} images, {who} has {many}")
            if METRICS[name].keep and real is None:
                raise ValueError(f"--metrics {name} needs real images, {config.reference} holds their statistics alone")

    def check_shapes(self) -> None:
        """ValueError where the reference's images are of another size, or grey where the others are coloured."""
        if self.reference is None or self.reference.source is None:
            return
        (channels, *size), (others, *other) = self.source.shape, self.reference.source.shape
        kinds, whose, mine = {1: "grey", 3: "coloured"}, f"{self.reference.name}'s images", f"{self.source.name}'s"
        if channels != others:
            raise ValueError(f"{whose} are {kinds.get(others)}, {mine} {kinds.get(channels)}: expected one kind")
        if size != other:
            raise ValueError(
                f"{whose} have {other[0]} x {other[1]} pixels, {mine} {size[0]} x {size[1]}; "
                "--side brings both to one size"
            )
