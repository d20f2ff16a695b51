"""`dmdistill presets`: which presets there are, and all options of one. Loads no torch."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import tomli_w

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.list_presets.config import PresetsConfig
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import (
    method_values,
    option_types,
    preset_comment,
    preset_names,
    preset_option,
    preset_values,
)
from dmdistill.commands.teach.config import TeachConfig

__all__ = ["list_presets", "resolve_preset"]

WIDTH = 100  # of the comment above a preset's options


def list_presets(config: PresetsConfig) -> None:
    """Print a line for each preset, below its teacher; or the options of one preset as TOML. ValueError for no such."""
    print("\n".join(describe_preset(config.name) if config.name else summarize_presets()))


def summarize_presets() -> list[str]:
    """Return the names, methods and descriptions of all presets, below their teachers."""
    groups: dict[str, list[str]] = {}
    width = max(map(len, preset_names()))
    for name in preset_names():
        method = resolve_preset(name).get("method", "dmd")
        about = re.split(r"(?<=\.) (?=[A-Z])", preset_comment(name))[0]  # its first sentence
        teacher = preset_option(name, "teacher") or "your own, by --teacher"
        groups.setdefault(teacher, []).append(f"  {name:<{width}}  {method:<13}  {about}")
    lines = [line for teacher, rows in groups.items() for line in (f"teacher: {teacher}", *rows, "")]
    return [*lines, "`dmdistill presets NAME` prints the options of one, `--preset NAME` takes them."]


def describe_preset(name: str) -> list[str]:
    """Return what a preset's file says of it, and its options, as lines of a TOML file that is the same preset."""
    about = f"{name}: {preset_comment(name)} All other options have the defaults of the commands."
    lines = textwrap.wrap(about, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return [*lines, "", tomli_w.dumps(resolve_preset(name)).rstrip()]


def resolve_preset(name: str) -> dict[str, Any]:
    """Return a preset's options with those of its bases and of its method, as a preset without a base.

    ValueError for an unknown preset.
    """
    distill, pairs, teach = (preset_values(kind, name) for kind in (DistillConfig, PairsConfig, TeachConfig))
    distill = method_values(DistillConfig, distill.get("method", "")) | distill
    known = option_types(PairsConfig)
    shared = {key: value for key, value in distill.items() if key not in known or pairs.get(key) == value}
    tables = {
        "distill": {key: value for key, value in distill.items() if key not in shared},
        "pairs": {key: value for key, value in pairs.items() if key not in shared},
        "teach": teach,
    }
    return shared | {key: table for key, table in tables.items() if table}
