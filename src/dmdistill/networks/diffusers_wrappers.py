"""Wrappers that give networks of diffusers the call signature F(x, t, cond), one per class of network.

A wrapper holds the network as `model` and translates the time of our schedule and the condition into its arguments.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["WRAPPERS", "DiT", "DiffusersWrapper", "Flux", "StableDiffusion3", "UNet2D", "UNet2DCondition"]


class NetworkCondition(Protocol):
    """A condition of either kind: labels have `one_hot` (B classes), prompts have `tensors` by name (B ...)."""

    @property
    def one_hot(self) -> Tensor:
        """Rows of one-hot labels, or of zeros for no class."""
        ...

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The embeddings of prompts by their name in diffusers."""
        ...


class DiffusersWrapper(nn.Module):
    """Base class of the wrappers of diffusers' networks.

    Args:
        model: the network. It is typed Any, as the library is not imported here.

    Attributes:
        time_scale: the network's timestep is time_scale times the time of the noise schedule.
    """

    time_scale = 1.0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def feature_layers(self) -> list[str]:
        """The layers whose output a discriminator judges: a U-Net's bottleneck, the middle block of a transformer."""
        if hasattr(self.model, "mid_block"):
            return ["model.mid_block"]
        return [f"model.transformer_blocks.{len(self.model.transformer_blocks) // 2}"]

    @property
    def classes(self) -> int:
        """The number of classes; 0 for a network without."""
        return 0

    def has_null_class(self, label_count: int) -> bool:
        """Return whether a network with label_count classes was trained without a class, too, as guidance needs."""
        return True


class UNet2D(DiffusersWrapper):
    """UNet2DModel: of pixels or latents, unconditional or with classes. A learned variance is dropped."""

    @property
    def classes(self) -> int:
        """The number of classes; 0 for a network without."""
        return self.model.config.num_class_embeds or 0

    def has_null_class(self, label_count: int) -> bool:
        """Return whether the labels leave out the last class, which then means none."""
        return label_count < self.classes

    def forward(self, x: Tensor, t: Tensor, cond: NetworkCondition | None = None) -> Tensor:
        """Return F(x, t, cond), B C H W."""
        labels = class_numbers(cond, self.classes) if self.classes else None
        return self.model(x, self.time_scale * t, class_labels=labels, return_dict=False)[0][:, : x.shape[1]]


class UNet2DCondition(DiffusersWrapper):
    """UNet2DConditionModel: of Stable Diffusion 1, 2 and XL, which is conditioned on a pooled prompt and a size, too.

    Attributes:
        pixels: of an image per latent, on a side.
    """

    pixels = 8

    def forward(self, x: Tensor, t: Tensor, cond: NetworkCondition | None = None) -> Tensor:
        """Return F(x, t, cond), B C H W."""
        embeds, pooled = prompt_embeds(cond, pooled=self.model.config.addition_embed_type == "text_time")
        added = {"text_embeds": pooled, "time_ids": self.time_ids(x)} if pooled is not None else None
        arguments = {"encoder_hidden_states": embeds, "added_cond_kwargs": added}
        return self.model(x, self.time_scale * t, **arguments, return_dict=False)[0][:, : x.shape[1]]

    def time_ids(self, x: Tensor) -> Tensor:
        """Return XL's original size, crop and target size, of an uncropped image."""
        ids = x.new_zeros(len(x), 6)  # filled on the device: a list that is copied to it would be waited for
        ids[:, 0::4], ids[:, 1::4] = self.pixels * x.shape[2], self.pixels * x.shape[3]
        return ids


class DiT(DiffusersWrapper):
    """DiTTransformer2DModel: of latents, with classes. A learned variance is dropped."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.model.config.num_embeds_ada_norm

    def forward(self, x: Tensor, t: Tensor, cond: NetworkCondition | None = None) -> Tensor:
        """Return F(x, t, cond), B C H W."""
        labels = class_numbers(cond, self.classes, null=self.classes)
        return self.model(x, self.time_scale * t, class_labels=labels, return_dict=False)[0][:, : x.shape[1]]


class StableDiffusion3(DiffusersWrapper):
    """SD3Transformer2DModel: a flow of latents, conditioned on prompts."""

    time_scale = 1000.0

    def forward(self, x: Tensor, t: Tensor, cond: NetworkCondition | None = None) -> Tensor:
        """Return F(x, t, cond), B C H W."""
        embeds, pooled = prompt_embeds(cond, pooled=True)
        arguments = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
        return self.model(x, timestep=self.time_scale * t, **arguments, return_dict=False)[0]


class Flux(DiffusersWrapper):
    """FluxTransformer2DModel: a flow on patches of 2 x 2 latents with their positions, conditioned on prompts.

    Attributes:
        guidance: the embedded guidance scale of a guidance-distilled Flux.
    """

    guidance = 3.5

    @property
    def embedded_guidance(self) -> float:
        """The guidance scale that is an input of the network; 0 for a Flux without this input."""
        return self.guidance if self.model.config.guidance_embeds else 0.0

    def forward(self, x: Tensor, t: Tensor, cond: NetworkCondition | None = None) -> Tensor:
        """Return F(x, t, cond), B C H W; its timestep runs from 0 to 1."""
        embeds, pooled = prompt_embeds(cond, pooled=True)
        b, c, height, width = x.shape
        rows, columns = height // 2, width // 2
        patches = x.reshape(b, c, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, 4 * c)
        axes = (torch.arange(size, device=x.device) for size in (1, rows, columns))
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        f = self.model(
            patches,
            timestep=t,
            guidance=torch.full_like(t, self.guidance) if self.model.config.guidance_embeds else None,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            img_ids=positions.to(x),
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            return_dict=False,
        )[0]
        return f.reshape(b, rows, columns, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def class_numbers(cond: NetworkCondition | None, classes: int, *, null: int | None = None) -> Tensor:
    """Return the classes of labels as integers (B,); a row of zeros, no class, has the number `null`.

    ValueError for labels of other classes, and for a row of zeros that has no number; on a GPU that is not checked, as
    it would have to be waited for.
    """
    if cond is None or cond.one_hot.shape[1] not in (classes, classes - 1):
        raise ValueError(f"the network was trained with {classes} classes: each sample needs a label of as many")
    one_hot = cond.one_hot
    if one_hot.shape[1] == classes - 1:  # the network's last class means none
        null = classes - 1
    none = one_hot.sum(1) == 0
    if null is None and none.device.type == "cpu" and none.any():
        raise ValueError("the network has no null class, which guidance needs: only guidance 1 is possible")
    return torch.where(none, null or 0, one_hot.argmax(1))


def prompt_embeds(cond: NetworkCondition | None, *, pooled: bool) -> tuple[Tensor, Tensor | None]:
    """Return the embeddings of prompts, B L D, and, if wanted, the pooled ones, B D."""
    tensors = getattr(cond, "tensors", {})
    names = ["prompt_embeds", "pooled_prompt_embeds"][: 1 + pooled]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"the network is conditioned on prompts, the condition holds no {' and no '.join(missing)}")
    return tensors["prompt_embeds"], tensors["pooled_prompt_embeds"] if pooled else None


WRAPPERS: dict[str, type[DiffusersWrapper]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
}
