"""Configuration of `dmdistill info`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

__all__ = ["InfoConfig"]


@dataclass(frozen=True)
class InfoConfig:
    """Say what a model is, or where a run stands."""

    model: Positional[str]
    """A model's name (fashion, fashion-student, edm-cifar10-32x32-cond-vp ...), its folder or run, or a .pkl of EDM."""
