"""Where settings come from: presets, the config.toml of a run. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable
from importlib import resources
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dmdistill.io.errors import did_you_mean

__all__ = [
    "check_at_least",
    "check_numbers",
    "check_positive",
    "check_shares",
    "flag_of",
    "from_preset",
    "overlay",
    "parse_toml",
    "presets",
    "to_toml",
    "with_preset",
    "with_run",
]

Config = TypeVar("Config")

SECTIONS = ("teach", "pairs", "distill", "classifier")  # of a preset: the commands that have settings to share


def presets() -> list[str]:
    """Names of the presets inside the package."""
    folder = resources.files("dmdistill.commands") / "presets"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def with_preset(config: Config, name: str, section: str) -> Config:
    """The configuration with one section of a preset laid over it. `name` may be a .toml file of the user's own."""
    if name.endswith(".toml"):
        text = read(Path(name))
    elif name in presets():
        text = (resources.files("dmdistill.commands") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        hint = did_you_mean(name, presets()) or "."
        raise ValueError(f"unknown preset {name!r}{hint} Known: {', '.join(presets())}, or a .toml file")
    table = parse_toml(text, f"preset {name}")
    for odd in sorted(table.keys() - set(SECTIONS)):
        raise ValueError(f"preset {name}: no command {odd!r}{did_you_mean(odd, SECTIONS)}")
    return overlay(config, {"preset": name, **table.get(section, {})}, f"preset {name}, [{section}]")


def from_preset(kind: type[Config], name: str, **changes: Any) -> Config:
    """A preset's configuration (TeachConfig, PairsConfig, DistillConfig ...) with some fields changed: what flags do, in Python."""
    section = {
        "TeachConfig": "teach",
        "PairsConfig": "pairs",
        "DistillConfig": "distill",
        "PlanConfig": "distill",
        "ClassifierConfig": "classifier",
    }[kind.__name__]
    return dataclasses.replace(with_preset(kind(), name, section), **changes)  # type: ignore[type-var]


def with_run(config: Config, folder: Path) -> Config:
    """The configuration of an earlier run, to go on with it."""
    file = folder / "config.toml"
    if not (table := parse_toml(read(file), str(file))):
        raise ValueError(f"{file} is empty: what the run was asked for is not known")
    return overlay(config, table | {"out": folder, "resume": folder}, str(file))


def read(file: Path) -> str:
    """Read a file of settings; a byte order mark is skipped. ValueError, naming it, where it is missing or no text."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: {error}") from None


def overlay(config: Config, values: dict[str, Any], where: str) -> Config:
    """A frozen configuration with some values replaced, those of nested ones from nested tables."""
    kinds = get_type_hints(type(config))
    changes = {}
    for key, value in values.items():
        if key not in kinds:
            raise ValueError(f"{where}: no setting {key!r}{did_you_mean(key, kinds)}")
        if dataclasses.is_dataclass(kinds[key]) and isinstance(value, dict):
            changes[key] = overlay(getattr(config, key), value, f"{where} {key}")
        else:
            changes[key] = convert(value, kinds[key], f"{where}: {key}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def convert(value: Any, kind: Any, where: str) -> Any:
    """A value of a TOML file as a field of this type wants it. ValueError, naming both, where it cannot be."""
    origin, inner = get_origin(kind), get_args(kind)
    if "blocks" in inner and isinstance(value, bool):
        return "blocks" if value else "none"  # --checkpointing, as it was written before there were norms
    if origin in (Union, UnionType):
        return convert(value, next(one for one in inner if one is not NoneType), where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(inner) == len(value):
            return tuple(convert(item, one, where) for item, one in zip(value, inner, strict=True))
    if origin is Literal and value in inner:
        return value
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = " or ".join(map(repr, inner)) if origin is Literal else getattr(kind, "__name__", kind)
    raise ValueError(f"{where} = {value!r}, expected {expected}")


def check_numbers(config: Any) -> None:
    """ValueError, naming the flag, where a number is NaN or infinite, or the seed none that a generator takes."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{flag_of(field.name)} {value}, expected a finite number")
        if field.name == "seed" and not 0 <= config.seed < 2**63:
            raise ValueError(f"--seed {value}, expected 0 to 2**63 - 1")


def check_at_least(config: Any, least: int, *names: str) -> None:
    """ValueError, naming the flag, where one of these numbers, or of these tuples of numbers, is less."""
    for name in names:
        check_each(config, name, lambda number: number >= least, f"at least {least}")


def check_positive(config: Any, *names: str) -> None:
    """ValueError, naming the flag, where one of these numbers, or of these tuples of numbers, is 0 or less."""
    for name in names:
        check_each(config, name, lambda number: number > 0, "above 0")


def check_shares(config: Any, *names: str) -> None:
    """ValueError, naming the flag, where one of these numbers, or of these tuples of numbers, is not in [0, 1)."""
    for name in names:
        check_each(config, name, lambda number: 0 <= number < 1, "0 or more, below 1")


def check_each(config: Any, name: str, good: Callable[[float], bool], wanted: str) -> None:
    """name: of a field, or of a nested one with a dot between."""
    value = attrgetter(name)(config)
    if not all(map(good, value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"{flag_of(name)} {value}, expected {wanted}")


def flag_of(name: str) -> str:
    """A field's, as it is typed."""
    return f"--{name.replace('_', '-')}"


def to_toml(table: dict[str, Any], prefix: str = "") -> str:
    """Plain values first, then the tables: all that our configurations hold."""
    lines, tables = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            tables.append(f"\n[{prefix}{key}]\n" + to_toml(value, f"{prefix}{key}."))
        elif value is not None:
            lines.append(f"{key} = {literal(value)}\n")
    return "".join(lines + tables)


def literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, bool | int | float | str):
        return json.dumps(
            value, ensure_ascii=False
        )  # JSON's literals are TOML's too, but for NaN and infinity, which no setting is
    return json.dumps(str(value), ensure_ascii=False)
