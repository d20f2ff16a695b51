"""Configuration of `dmdistill presets`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

__all__ = ["PresetsConfig"]


@dataclass(frozen=True)
class PresetsConfig:
    """List the presets, or show all options of one."""

    name: Positional[str] = ""
    """Preset, or a .toml file of your own, to show in full; without one all presets are listed."""
