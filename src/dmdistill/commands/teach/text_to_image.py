"""The teacher of text to image that `dmdistill teach --kind stable-diffusion` trains, of Stable Diffusion's own parts.

An autoencoder is trained first. Then the U-Net learns to denoise its latents, together with the text encoder, as there
is none that was trained before.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmdistill.commands.run_folder import RunFolder
from dmdistill.commands.teach.caption_tokens import TOKENS, CaptionedLatents, CaptionTokens, TextUNet
from dmdistill.commands.teach.recipes import Recipe, group_count
from dmdistill.core.denoisers import EpsDenoiser
from dmdistill.core.schedules import VP
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.io.atomic import write_json
from dmdistill.io.errors import import_optional
from dmdistill.io.folders import new_folder
from dmdistill.models.autoencoder import VAE
from dmdistill.models.diffusers_folder import METADATA_FILE
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.diffusers_text import PipelineText
from dmdistill.models.model import Teacher
from dmdistill.models.quiet import quiet
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

__all__ = ["StableDiffusionRecipe"]

LEVELS = 3  # of the autoencoder, whose latents have a quarter of the image's sides
LATENT_CHANNELS = 4
HEADS = 4
LATENT_NOISE = 0.1  # added to latents in training the autoencoder, so that near latents decode alike
GUIDANCE = 3.0  # of the teacher, as in the paper's run on LAION-Aesthetics 6.25+
LATENT_PENALTY = 1e-3  # on their squares, so that they do not grow beyond that noise
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion
BATCH = 500  # images encoded at once


class StableDiffusionRecipe(Recipe):
    """A StableDiffusionPipeline of diffusers: AutoencoderTiny, CLIPTextModel and UNet2DConditionModel, all small."""

    def new_teacher(self, data: LabelledImages) -> Teacher:
        check_images(data, self.config.data)
        captions = CaptionTokens.of(data.captions)
        _, channels, height, width = data.images.shape
        autoencoder = VAE(self.autoencoder(channels))
        shape = (LATENT_CHANNELS, height >> LEVELS - 1, width >> LEVELS - 1)
        return Teacher(
            name=data.name,
            denoiser=EpsDenoiser(TextUNet(self.unet(shape), self.text_encoder(captions.tokenizer)), self.schedule),
            shape=shape,
            conditions=captions,
            autoencoder=autoencoder,
            text=PipelineText(self.config.out / "teacher"),  # which is there when the teacher is
            licence=data.licence,
            feature_extractor=data.feature_extractor,
            solver="pndm",
            steps=50,
            guidance=GUIDANCE,
            config={
                "kind": "teacher",
                "name": data.name,
                "guidance": GUIDANCE,
                "licence": data.licence,
                "feature_extractor": data.feature_extractor,
            },
        )

    @cached_property
    def schedule(self) -> VP:
        """Stable Diffusion's noise schedule."""
        return VP(self.scheduler.alphas_cumprod)

    @cached_property
    def scheduler(self) -> Any:
        """Stable Diffusion's scheduler."""
        return library("diffusers").PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)

    def autoencoder(self, channels: int) -> Any:
        """Build the autoencoder."""
        widths = (self.config.text.autoencoder_channels,) * LEVELS
        return library("diffusers").AutoencoderTiny(
            in_channels=channels,
            out_channels=channels,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(1,) * LEVELS,
            num_decoder_blocks=(1,) * LEVELS,
            latent_channels=LATENT_CHANNELS,
        )

    def text_encoder(self, tokenizer: Any) -> Any:
        """Build the text encoder for the tokens of a tokenizer."""
        text = self.config.text
        config = library("transformers").CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text.text_channels,
            intermediate_size=4 * text.text_channels,
            projection_dim=text.text_channels,
            num_hidden_layers=text.text_layers,
            num_attention_heads=HEADS,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return library("transformers").CLIPTextModel(config)

    def unet(self, shape: tuple[int, int, int]) -> Any:
        """Build the U-Net."""
        network = self.config.network
        last = len(network.channel_mult) - 1
        attends = [shape[1] >> level in network.attn_resolutions or level == last for level in range(last + 1)]
        return library("diffusers").UNet2DConditionModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            down_block_types=["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
            up_block_types=["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
            block_out_channels=[network.model_channels * mult for mult in network.channel_mult],
            layers_per_block=network.num_blocks,
            norm_num_groups=group_count(network.model_channels, least=network.group_channels),
            cross_attention_dim=self.config.text.text_channels,
            attention_head_dim=HEADS,
            dropout=network.dropout,
        )

    def sample_t(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw timesteps uniformly."""
        return self.schedule.sample_t(n, rng=rng)

    def training_set(self, teacher: Teacher, data: LabelledImages, run: RunFolder) -> CaptionedLatents:
        """Train the teacher's autoencoder, and encode the images."""
        autoencoder: Any = teacher.autoencoder
        self.train_autoencoder(autoencoder.model, data.images, run)
        latents = torch.cat([autoencoder.encode(x) for x in image_batches(data.images, run.device)])
        scale = float(f"{1 / latents.std().item():.5g}")
        autoencoder.scale = scale
        autoencoder.model.register_to_config(scaling_factor=scale)
        dropout = self.config.augmentation.label_dropout
        captions: Any = teacher.conditions
        return CaptionedLatents(latents * scale, captions, rng=run.rng, dropout=dropout)

    def train_autoencoder(self, model: Any, images: Tensor, run: RunFolder) -> None:
        """Train the autoencoder in a folder of its own in the run's; its loss is the mean absolute error of pixels."""
        steps, rng = self.config.text.autoencoder_steps, run.rng
        model.train().requires_grad_(True)
        optimizer = NetworkOptimizer(model, name="autoencoder", lr=2e-3, steps=steps, warmup=100, decay=True, clip=1.0)
        trainer = Trainer(
            run.folder / "autoencoder",
            steps=steps,
            updates={"autoencoder": optimizer},
            rng=rng,
            log_every=self.config.output.log_every,
            save_every=self.config.output.save_every,
        )
        if self.config.resume is not None:
            trainer.restore()

        def iterate(step: int) -> dict[str, Tensor]:
            x = from_uint8(images[torch.randint(len(images), (self.config.batch,), generator=rng, device=rng.device)])
            with autocast(run):
                z = model.encode(x, return_dict=False)[0].float()
                y = model.decode(z + LATENT_NOISE * torch.randn(z.shape, generator=rng, device=z.device)).sample
            error = (y.float() - x).abs().mean()
            optimizer(error + LATENT_PENALTY * z.square().mean())
            return {"loss_autoencoder": error.detach()}

        images = images.to(run.device)
        if not trainer.fit(iterate, name="training the autoencoder"):
            run.stop("teach", trainer)
        model.eval().requires_grad_(False)

    def save(self, folder: Path, teacher: Teacher, *, card: str, dtype: torch.dtype) -> Teacher:
        """Write the pipeline, with our metadata, and load it."""
        network, autoencoder, captions = cast(Any, (teacher.network, teacher.autoencoder, teacher.conditions))
        parts = {"unet": network.unet.model, "text_encoder": network.text_encoder, "vae": autoencoder.model}
        plain: dict[str, Any] = {"device": "cpu", "dtype": dtype, "memory_format": torch.contiguous_format}
        stored = {name: nn.Module.to(copy.deepcopy(part), **plain) for name, part in parts.items()}
        stored |= {"tokenizer": captions.tokenizer, "scheduler": self.scheduler}
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        with quiet("diffusers", "transformers"):
            pipeline = library("diffusers").StableDiffusionPipeline(**stored, **none)
        if folder.exists():  # of the same run, which was resumed when it had finished
            shutil.rmtree(folder)
        with new_folder(folder) as temporary, quiet("diffusers", "transformers"):
            pipeline.save_pretrained(temporary)
            metadata = {key: value for key, value in teacher.config.items() if key != "kind"}
            write_json(temporary / METADATA_FILE, metadata)
            (temporary / "README.md").write_text(card, encoding="utf-8")
        return cast(Teacher, load_diffusers(str(folder)).to(teacher.device, teacher.denoiser.precision))


def check_images(data: LabelledImages, source: Path) -> None:
    """Raise a ValueError for images without captions, or of sides that the pipeline cannot generate."""
    if not data.captions:
        raise ValueError(
            f"--kind stable-diffusion: the images of {source} have no captions; expected a .txt beside each, or a "
            "table; `dmdistill convert fashion-captions FILE.zip` writes Fashion-MNIST with captions"
        )
    height, width = data.images.shape[2:]
    if height % 8 or width % 8:
        raise ValueError(
            f"--kind stable-diffusion for images of {height} x {width} pixels, expected multiples of 8: --side gives "
            "all of them such a side"
        )


def image_batches(images: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Yield uint8 images as batches in [-1, 1] on a device."""
    return (from_uint8(part.to(device)) for part in images.split(BATCH))


def autocast(run: RunFolder) -> Any:
    """Return a context in which networks compute in the run's precision."""
    return nullcontext() if run.precision is None else torch.autocast(run.device.type, run.precision)


def library(name: str) -> Any:
    """Import a library, whose names load on first use, unknown to types."""
    return import_optional(name, "--kind stable-diffusion", extra="diffusers")
