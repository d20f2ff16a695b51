"""Configuration of `dmdistill convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

__all__ = ["ConvertConfig"]


@dataclass(frozen=True)
class ConvertConfig:
    """Write a teacher, say an EDM checkpoint, as a folder; LPIPS' weights or Fashion-MNIST's captions as a file."""

    model: Positional[str]
    """An EDM checkpoint (.pkl), the name of a published one, the folder of a teacher with our network; or lpips; or
    fashion-captions."""
    out: Positional[Path | None] = None
    """Output folder, which must be new; of lpips a file, by default the one in the cache that every command finds; of
    fashion-captions a .zip of images with captions, or a .txt of the captions only."""
    save_dtype: Literal["fp32", "fp16"] = "fp32"
    """Precision of a teacher's stored weights."""
    vgg16: Path | None = None
    """For lpips: torchvision's vgg16-397923af.pth. By default it is looked for in the caches, else downloaded."""
    heads: Path | None = None
    """For lpips: vgg.pth, the linear layers of the package lpips 0.1. By default as --vgg16."""
    data: str = "datasets/fashion-mnist"
    """For fashion-captions: the folder of Fashion-MNIST's files; append :test for its test images."""

    def check(self) -> None:
        """Raise a ValueError where an option is missing, or is not for what is converted."""
        if self.model != "lpips":
            if self.out is None:
                raise ValueError(f"convert {self.model}: give the folder or file to write as well")
            if self.model == "fashion-captions" and self.out.suffix not in (".zip", ".txt"):
                raise ValueError(f"convert fashion-captions {self.out}: expected a name ending in .zip or .txt")
            if self.vgg16 or self.heads:
                raise ValueError("--vgg16 and --heads are for `dmdistill convert lpips`")
        elif self.save_dtype != "fp32":
            raise ValueError(f"--save-dtype {self.save_dtype} is for teachers: LPIPS keeps its published precision")
