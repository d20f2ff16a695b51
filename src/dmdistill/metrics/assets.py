"""Weights that are not part of the package: found in the folder $DMDISTILL_ASSETS, or in the cache."""

from __future__ import annotations

import os
from pathlib import Path

from dmdistill.io.folders import cache_folder

__all__ = ["asset_places", "find_asset"]


def find_asset(name: str) -> Path | None:
    """Return the first file of this name in $DMDISTILL_ASSETS and the cache; None where neither has it."""
    return next((folder / name for folder in asset_folders() if (folder / name).is_file()), None)


def asset_places() -> str:
    """Name the folders that are searched, for error messages."""
    unset = "" if os.environ.get("DMDISTILL_ASSETS") else "$DMDISTILL_ASSETS (not set) or "
    return unset + " or ".join(str(folder) for folder in asset_folders())


def asset_folders() -> list[Path]:
    """List the folders that are searched."""
    assets = os.environ.get("DMDISTILL_ASSETS")
    return [*([Path(assets).expanduser()] if assets else []), cache_folder()]
