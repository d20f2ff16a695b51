"""Configuration of `dmdistill info`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

__all__ = ["InfoConfig"]


@dataclass(frozen=True)
class InfoConfig:
    """Describe a model, or the progress and health of a run; verify a set of pairs."""

    model: Positional[str]
    """Model: a name, its folder or run, a .pkl of EDM, a .safetensors, a hub id, module:function; or pairs."""
