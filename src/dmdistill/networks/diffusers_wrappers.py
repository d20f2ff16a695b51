"""Networks of diffusers under the one call signature F(x, t, cond): one adapter per class, each on one screen.

An adapter holds the network as `model` and translates the time of our path and the condition into its arguments.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["ADAPTERS", "DiT", "DiffusersWrapper", "Flux", "StableDiffusion3", "UNet2D", "UNet2DCondition"]


class Told(Protocol):
    """The two kinds of condition: one_hot (B classes) of labels, or tensors by name (B ...) of prompts."""

    @property
    def one_hot(self) -> Tensor: ...

    @property
    def tensors(self) -> dict[str, Tensor]: ...


class DiffusersWrapper(nn.Module):
    """A network of diffusers. `model` is typed Any: the library is not imported here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def classes(self) -> int:
        """How many classes it knows; 0 for none."""
        return 0

    def has_null_class(self, told: int) -> bool:
        """Whether, told one of so many classes, it was also taught to be told none, which guidance needs."""
        return True


class UNet2D(DiffusersWrapper):
    """UNet2DModel: pixels or latents, told a class or nothing."""

    @property
    def classes(self) -> int:
        return self.model.config.num_class_embeds or 0

    def has_null_class(self, told: int) -> bool:
        return told < self.classes

    def forward(self, x: Tensor, t: Tensor, cond: Told | None = None) -> Tensor:
        labels = class_numbers(cond, self.classes) if self.classes else None
        return self.model(x, t, class_labels=labels, return_dict=False)[0]


class UNet2DCondition(DiffusersWrapper):
    """UNet2DConditionModel: Stable Diffusion 1 and 2, told a prompt; and XL, told its pooled embedding and size too.

    pixels: of an image per latent, on a side.
    """

    pixels = 8

    def forward(self, x: Tensor, t: Tensor, cond: Told | None = None) -> Tensor:
        embeds, pooled = prompt(cond, pooled=self.model.config.addition_embed_type == "text_time")
        added = {"text_embeds": pooled, "time_ids": self.size(x)} if pooled is not None else None
        told = {"encoder_hidden_states": embeds, "added_cond_kwargs": added}
        return self.model(x, t, **told, return_dict=False)[0]

    def size(self, x: Tensor) -> Tensor:
        """XL's original size, crop and target size: a whole image."""
        height, width = self.pixels * x.shape[2], self.pixels * x.shape[3]
        return x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), -1)


class DiT(DiffusersWrapper):
    """DiTTransformer2DModel: latents, told a class. Its second half of channels, a variance, is not used."""

    @property
    def classes(self) -> int:
        return self.model.config.num_embeds_ada_norm

    def forward(self, x: Tensor, t: Tensor, cond: Told | None = None) -> Tensor:
        labels = class_numbers(cond, self.classes, null=self.classes)
        return self.model(x, t, class_labels=labels, return_dict=False)[0][:, : x.shape[1]]


class StableDiffusion3(DiffusersWrapper):
    """SD3Transformer2DModel: a flow, whose time runs to 1000 there."""

    def forward(self, x: Tensor, t: Tensor, cond: Told | None = None) -> Tensor:
        embeds, pooled = prompt(cond, pooled=True)
        told = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
        return self.model(x, timestep=1000 * t, **told, return_dict=False)[0]


class Flux(DiffusersWrapper):
    """FluxTransformer2DModel: a flow on patches of 2 x 2 latents, each with its place.

    guidance: what a guidance-distilled Flux is told in place of guidance.
    """

    guidance = 3.5

    @property
    def embedded_guidance(self) -> float:
        """The guidance it is told; 0 for a Flux that is told none."""
        return self.guidance if self.model.config.guidance_embeds else 0.0

    def forward(self, x: Tensor, t: Tensor, cond: Told | None = None) -> Tensor:
        embeds, pooled = prompt(cond, pooled=True)
        b, c, height, width = x.shape
        rows, columns = height // 2, width // 2
        patches = x.reshape(b, c, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, 4 * c)
        row, column = torch.arange(rows), torch.arange(columns)
        places = torch.stack(torch.meshgrid(torch.arange(1), row, column, indexing="ij"), dim=-1).reshape(-1, 3)
        f = self.model(
            patches,
            timestep=t,
            guidance=torch.full_like(t, self.embedded_guidance) if self.embedded_guidance else None,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            img_ids=places.to(x),
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            return_dict=False,
        )[0]
        return f.reshape(b, rows, columns, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def class_numbers(cond: Told | None, classes: int, *, null: int | None = None) -> Tensor:
    """The classes of labels as integers (B,); a row of zeros, no class, is number `null`."""
    if cond is None or cond.one_hot.shape[1] not in (classes, classes - 1):
        raise ValueError(f"the network was trained with {classes} classes: each sample needs a label of as many")
    one_hot = cond.one_hot
    if one_hot.shape[1] == classes - 1:  # the network's last class is taught to mean none
        null = classes - 1
    none = one_hot.sum(1) == 0
    if null is None and none.any():
        raise ValueError("the network has no class that means none, which guidance needs: only guidance 1 is possible")
    return torch.where(none, null or 0, one_hot.argmax(1))


def prompt(cond: Told | None, *, pooled: bool) -> tuple[Tensor, Tensor | None]:
    """The embeddings of prompts, B L D, and, where asked for, the pooled ones, B D."""
    tensors = getattr(cond, "tensors", {})
    names = ["prompt_embeds", "pooled_prompt_embeds"][: 1 + pooled]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"the network is told prompts, the condition holds no {' and no '.join(missing)}")
    return tensors["prompt_embeds"], tensors["pooled_prompt_embeds"] if pooled else None


ADAPTERS: dict[str, type[DiffusersWrapper]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
}
