"""Images of another size than a latent model's network was trained at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmdistill.models.autoencoder import VAE
from dmdistill.models.model import Model

__all__ = ["ImageSize", "check_fixed_size", "latent_shape"]

ImageSize = tuple[int, int]  # height and width in pixels
Shape = tuple[int, int, int]


def latent_shape(
    shape: Shape, size: ImageSize, *, autoencoder: VAE | None, class_name: str, config: Any, folder: Path
) -> Shape:
    """Return C H W of the latents of images of a size.

    Args:
        shape: of the latents that the network was trained at.
        size: of the images.
        autoencoder: of the pipeline; None for a network of pixels.
        class_name: of the network, in diffusers.
        config: the network's.
        folder: of the network, for messages.

    Raises:
        ValueError: the network knows one size only, or the size is no multiple of what it can be halved or patched to.
    """
    height, width = size
    given = f"images of {height} x {width} pixels (--height, --width)"
    if autoencoder is None:
        raise ValueError(f"{given}: {folder} is a network of pixels and makes images of {shape[1]} x {shape[2]} only")
    cells = cells_per_token(class_name, config)
    if cells is None:
        raise ValueError(f"{given}: a {class_name} has positions of one size, expected none of both options")
    pixels = autoencoder.image_shape((1, 1, 1))[1]
    multiple = cells * pixels
    if height % multiple or width % multiple:
        near = [max(round(side / multiple), 1) * multiple for side in size]
        raise ValueError(f"{given}: expected multiples of {multiple} for {folder}, such as {near[0]} x {near[1]}")
    largest = config.get("pos_embed_max_size")
    if largest and max(size) > largest * multiple:
        raise ValueError(f"{given}: {folder} has positions up to {largest * multiple} pixels a side")
    return shape[0], height // pixels, width // pixels


def cells_per_token(class_name: str, config: Any) -> int | None:
    """Return how many latents on a side a network halves or patches to one; None where it has one size only."""
    if class_name in ("UNet2DModel", "UNet2DConditionModel"):
        return 2 ** (len(config["block_out_channels"]) - 1)
    if class_name == "SD3Transformer2DModel":
        return config["patch_size"]
    return 2 if class_name == "FluxTransformer2DModel" else None


def check_fixed_size(model: Model, size: ImageSize | None) -> None:
    """Raise a ValueError where a size is wanted of a model that is no pipeline of diffusers and has its own."""
    if size is not None and model.config.get("image_size") != list(size):
        _, height, width = model.shape
        kind = "images" if model.autoencoder is None else "latents"
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels (--height, --width): {model.name} makes {kind} of {height} x "
            f"{width} only; latent pipelines of diffusers can have other sizes"
        )
