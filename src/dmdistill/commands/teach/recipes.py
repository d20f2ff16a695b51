"""The kinds of teacher that `dmdistill teach` trains: network, training times, and how the teacher is written."""

from __future__ import annotations

import copy
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dmdistill.commands.run_folder import RunFolder
from dmdistill.commands.teach.config import TeachConfig
from dmdistill.core.denoisers import Condition, EDMDenoiser
from dmdistill.core.schedules import EDM, VP
from dmdistill.data.augmentation import Augmentation, GeometricAugmentation, HorizontalFlip, NoAugmentation
from dmdistill.data.conditions import LabelSpace
from dmdistill.data.image_tensors import LabelledImages
from dmdistill.data.training_set import TrainingSet
from dmdistill.io.atomic import write_json
from dmdistill.io.errors import import_optional
from dmdistill.io.folders import new_folder
from dmdistill.models.diffusers_folder import METADATA_FILE
from dmdistill.models.diffusers_scheduler import PREDICTIONS
from dmdistill.models.folder import save_model
from dmdistill.models.model import Teacher
from dmdistill.networks.diffusers_wrappers import UNet2D
from dmdistill.networks.song_unet import SongUNet

__all__ = ["Batches", "DDPMRecipe", "EDMRecipe", "Recipe", "group_count", "label_space"]


class Batches(Protocol):
    """Training samples in random batches."""

    def draw(self, n: int) -> tuple[Tensor, Condition | None]:
        """Draw n samples of the teacher's shape, fp32, and their conditions."""
        ...


@dataclass(frozen=True)
class Recipe(ABC):
    """What differs between the kinds of teacher."""

    config: TeachConfig

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of the training images."""
        if self.config.augmentation.augment:
            return GeometricAugmentation(self.config.augmentation.augment)
        return HorizontalFlip() if self.config.augmentation.mirror else NoAugmentation()

    @abstractmethod
    def new_teacher(self, data: LabelledImages) -> Teacher:
        """Build a teacher with fresh weights. ValueError where the network does not fit the data."""

    def training_set(self, teacher: Teacher, data: LabelledImages, run: RunFolder) -> Batches:
        """Return the batches that a new teacher is trained on."""
        dropout = self.config.augmentation.label_dropout
        return TrainingSet(data, rng=run.rng, augmentation=self.augmentation, label_dropout=dropout)

    @abstractmethod
    def sample_t(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw n training times, fp32, on the device of `rng`."""

    @abstractmethod
    def save(self, folder: Path, teacher: Teacher, *, card: str, dtype: torch.dtype) -> Teacher:
        """Write a folder that `load_model` loads, with weights in `dtype`, and return the teacher, ready for use."""


class EDMRecipe(Recipe):
    """EDM's preconditioning of our own U-Net (Karras et al. 2022)."""

    def new_teacher(self, data: LabelledImages) -> Teacher:
        _, channels, size, width = data.images.shape
        if width != size:
            raise ValueError(
                f"--kind edm for images of {size} x {width} pixels, expected square ones: --side crops them"
            )
        network = {
            "img_resolution": size,
            "in_channels": channels,
            "out_channels": channels,
            "label_dim": len(data.names),
            **({"augment_dim": self.augmentation.labels} if self.augmentation.labels else {}),
            **asdict(self.config.network),
        }
        return Teacher(
            name=data.name,
            denoiser=EDMDenoiser(SongUNet(**network), EDM()),
            shape=(channels, size, size),
            conditions=label_space(data),
            licence=data.licence,
            feature_extractor=data.feature_extractor,
            config={
                "kind": "teacher",
                "name": data.name,
                "network": {"class": "SongUNet", **network},
                "schedule": {"class": "EDM"},
                "denoiser": {"class": "EDMDenoiser"},
                "shape": [channels, size, size],
                "classes": list(data.names),
                "solver": "heun",
                "steps": 18,
                "guidance": 1.0,
                "licence": data.licence,
                "feature_extractor": data.feature_extractor,
            },
        )

    def sample_t(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw sigma, whose logarithm is normal."""
        return (
            torch.randn(n, generator=rng, device=rng.device)
            .mul(self.config.noise.p_std)
            .add(self.config.noise.p_mean)
            .exp()
        )

    def save(self, folder: Path, teacher: Teacher, *, card: str, dtype: torch.dtype) -> Teacher:
        save_model(folder, teacher, card=card, dtype=dtype)
        return teacher


class DDPMRecipe(Recipe):
    """A UNet2DModel of diffusers on DDPM's schedule (Ho et al. 2020); its last class means none."""

    def new_teacher(self, data: LabelledImages) -> Teacher:
        metadata = {
            "name": f"{data.name}-ddpm",
            "classes": list(data.names),
            "licence": data.licence,
            "feature_extractor": data.feature_extractor,
        }
        _, channels, height, width = data.images.shape
        return Teacher(
            name=metadata["name"],
            denoiser=PREDICTIONS[self.config.prediction](UNet2D(self.unet(data)), self.schedule),
            shape=(channels, height, width),
            conditions=label_space(data),
            licence=data.licence,
            feature_extractor=metadata["feature_extractor"],
            solver="ddim",
            steps=50,
            config={"kind": "teacher", **metadata},
        )

    @cached_property
    def schedule(self) -> VP:
        """DDPM's noise schedule."""
        return VP(diffusers().DDPMScheduler().alphas_cumprod)

    def unet(self, data: LabelledImages) -> Any:
        """Build the UNet2DModel. ValueError where it cannot be built for the data."""
        network = self.config.network
        _, channels, height, width = data.images.shape
        if self.augmentation.labels:
            raise ValueError(
                f"--augment {self.config.augmentation.augment} with --kind ddpm: a UNet2DModel cannot be "
                "conditioned on augmentations, expected 0; --mirror is allowed"
            )
        if network.patch_size != 1:
            raise ValueError(
                f"--patch-size {network.patch_size} with --kind ddpm: a UNet2DModel has no patches, expected "
                "1, as --preset fashion-ddpm sets it"
            )
        halvings = len(network.channel_mult) - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(
                f"--channel-mult {network.channel_mult} halves images {halvings} times, which those of "
                f"{height} x {width} pixels do not allow: expected sizes divisible by {2**halvings}, or fewer levels"
            )
        attends = [height >> level in network.attn_resolutions for level in range(halvings + 1)]
        return diffusers().UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            dropout=network.dropout,
            block_out_channels=[network.model_channels * mult for mult in network.channel_mult],
            layers_per_block=network.num_blocks,
            norm_num_groups=group_count(network.model_channels, least=network.group_channels),
            attention_head_dim=network.model_channels,
            down_block_types=["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
            up_block_types=["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
            num_class_embeds=len(data.names) + 1 if data.names else None,
        )

    def sample_t(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw timesteps uniformly."""
        return self.schedule.sample_t(n, rng=rng)

    def save(self, folder: Path, teacher: Teacher, *, card: str, dtype: torch.dtype) -> Teacher:
        """Write a network's folder of diffusers, with its scheduler and our metadata."""
        scheduler = diffusers().DDIMScheduler(
            prediction_type=self.config.prediction,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        )
        stored: Any = copy.deepcopy(teacher.network.model)
        plain = {"device": "cpu", "dtype": dtype, "memory_format": torch.contiguous_format}
        nn.Module.to(stored, **plain)  # its own `to` warns of casts
        if folder.exists():  # of the same run, which was resumed when it had finished
            shutil.rmtree(folder)
        with new_folder(folder) as temporary:
            stored.save_pretrained(temporary)
            scheduler.save_pretrained(temporary / "scheduler")
            write_json(
                temporary / METADATA_FILE, {key: value for key, value in teacher.config.items() if key != "kind"}
            )
            (temporary / "README.md").write_text(card, encoding="utf-8")
        return teacher


def label_space(data: LabelledImages) -> LabelSpace | None:
    """Return the classes of images; None for images without labels."""
    return LabelSpace(data.names) if data.names else None


def group_count(channels: int, *, least: int) -> int:
    """Return the largest number of equal groups of at least `least` channels, for all levels of the network."""
    return max((n for n in range(1, channels // least + 1) if channels % n == 0), default=1)


def diffusers() -> Any:
    """Import the library, whose names load on first use, unknown to types."""
    return import_optional("diffusers", "--kind ddpm", extra="diffusers")
