"""Presets, and the configurations of earlier runs, as TOML. Imports no torch.

    base = "cifar10"        # another preset to start from
    lr = 5e-5               # options of `pairs`, `distill` and `plan`, by their names, in tables or not
    [pairs]                 # options of `pairs` only
    [distill]               # options of `distill` and `plan` only
    [teach]                 # options of `teach` only

The command-line parser reads the values as if they were typed as flags before the user's own, so it alone converts and
checks them.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from importlib import resources
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
import tyro

from dmdistill.commands.options import change, flag_name
from dmdistill.io.checksums import add_checksum, note_unverified, pop_checksum
from dmdistill.io.errors import did_you_mean

__all__ = [
    "from_method",
    "from_preset",
    "from_run",
    "method_values",
    "option_types",
    "preset_comment",
    "preset_names",
    "preset_option",
    "preset_values",
    "recommended_presets",
    "write_config",
]

Config = TypeVar("Config")

MAX_DEPTH = 4
TABLES = ("teach", "pairs", "distill")
TABLE_OF = {"TeachConfig": "teach", "PairsConfig": "pairs", "DistillConfig": "distill", "PlanConfig": "distill"}


def preset_names() -> list[str]:
    """Return the names of the presets inside the package; one that starts with an underscore is only a base."""
    names = [file.name.removesuffix(".toml") for file in preset_folder().iterdir() if file.name.endswith(".toml")]
    return sorted(name for name in names if not name.startswith("_"))


def preset_folder() -> Any:
    return resources.files("dmdistill.commands") / "presets"


def from_preset(kind: type[Config], name: str, **changes: Any) -> Config:
    """Build a configuration from a preset, with other values of some options: what flags do, in Python.

    Args:
        kind: DistillConfig, PairsConfig, PlanConfig or TeachConfig.
        name: of a preset, or a .toml file.
        changes: values by the options' names.

    Of a preset for another method than that of `changes` the options are left out that this one does not use.

    ValueError for an unknown preset, for options that the command lacks, and for a preset without any for it.
    """
    values = preset_values(kind, name)
    if not values:
        raise ValueError(f"preset {name} has no options for {TABLE_OF[kind.__name__]}, choose another one")
    own = values.get("method", "dmd")
    method = changes.get("method", own)
    if method != own:
        unused = getattr(kind, "unused_options")(method)  # noqa: B009 - of DistillConfig, which alone has methods
        values = {option: value for option, value in values.items() if option not in unused}
    return change(parse_values(kind, method_values(kind, method) | values, f"preset {name}"), preset=name, **changes)


def from_method(kind: type[Config], method: str, **changes: Any) -> Config:
    """Build a configuration with a method's own values where they differ from the defaults, which are those of DMD.

    Args:
        kind: DistillConfig or PlanConfig.
        method: a name of a method, or module:function.
        changes: values by the options' names.
    """
    return change(parse_values(kind, method_values(kind, method), method), method=method, **changes)


def method_values(kind: type, method: str) -> dict[str, Any]:
    """Return the options of a command in which a method differs from DMD; none for one that is not ours."""
    known = "method" in option_types(kind) and (preset_folder() / f"_{method}.toml").is_file()
    return preset_values(kind, f"_{method}") if known and ":" not in method else {}


def preset_values(kind: type, name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a preset's options for a command, those of its bases included; `above` are presets whose base it is.

    ValueError for an unknown preset, and for one that is its own base.
    """
    if name in above:
        raise ValueError(f"preset {name}: its base leads back to it, by {' and '.join(above)}")
    table = read_preset(name)
    base = table.pop("base", None)
    values = preset_values(kind, str(base), (*above, name)) if base is not None else {}
    check_tables(kind, name, table)
    command = TABLE_OF[kind.__name__]
    tables = {key: value for key, value in table.items() if key in TABLES and isinstance(value, dict)}
    own = tables.get(command, {})
    shared = {} if command == "teach" else dict(flatten({k: v for k, v in table.items() if k not in tables}))
    if command == "pairs":  # the other options that the tables share are those of distill
        shared = {key: value for key, value in shared.items() if key in option_types(kind)}
    return values | shared | dict(flatten(own))


def check_tables(kind: type, name: str, table: Mapping[str, Any]) -> None:
    """Raise a ValueError for a table of a preset that is neither a command's nor one of its groups of options.

    `pairs` leaves out what is of `distill`, and so its groups, which are not known here.
    """
    known = {*TABLES, *(group for group, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint))}
    odd = [key for key, value in table.items() if isinstance(value, dict) and key not in known]
    if odd and TABLE_OF[kind.__name__] == "distill":
        raise ValueError(f"preset {name}: no table [{odd[0]}]{did_you_mean(odd[0], TABLES)}")


def preset_comment(name: str) -> str:
    """Return the comment that a preset's file begins with, as one line; "" without one. ValueError as `read_preset`."""
    read_preset(name)
    file = Path(name).expanduser() if name.endswith(".toml") else preset_folder() / f"{name}.toml"
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8-sig").splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def read_preset(name: str) -> dict[str, Any]:
    """Read a preset's TOML. ValueError for an unknown name, with the nearest known one."""
    if name.endswith(".toml"):
        return read_toml(Path(name).expanduser())
    file = preset_folder() / f"{name}.toml"
    if not name or "/" in name or not file.is_file():
        if Path(name).is_file():
            raise ValueError(f"{name} is no preset: a preset is a .toml file")
        names = preset_names()
        hint = did_you_mean(name, names)
        known = " `dmdistill presets` lists all" if hint else f". Known: {', '.join(names)}, or a .toml file"
        raise ValueError(f"unknown preset {name!r}{hint}{known}")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file, without the checksum that a run's has.

    ValueError, naming the file, where it is missing or no TOML, or where its checksum differs.
    """
    try:
        table = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist") from None
    except RecursionError:
        raise ValueError(f"{file} cannot be read as TOML: it is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as TOML: {error}") from None
    if is_deep(table):
        raise ValueError(
            f"{file} cannot be used: its tables are nested too deeply, expected at most {MAX_DEPTH} levels"
        )
    pop_checksum(table, file)
    return table


def is_deep(table: Mapping[str, Any]) -> bool:
    """Return whether there are tables in tables in tables, deeper than any preset's."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        level = [value for one in level for value in one.values() if isinstance(value, dict)]
    return bool(level)


def from_run(kind: type[Config], folder: Path) -> Config:
    """Build the configuration of an earlier run, to resume it. ValueError, naming the file, where it is damaged."""
    file = folder / "config.toml"
    if not (table := read_toml(file)):
        raise ValueError(f"{file} is empty: the run's options are not known")
    config = change(parse_values(kind, dict(flatten(table)), str(file)), out=folder, resume=folder)
    note_unverified(file)
    return config


def write_config(config: Any, file: Path) -> None:
    """Write a configuration as TOML with a checksum, its groups as tables; an option without a value is left out."""
    file.write_text(tomli_w.dumps(add_checksum(plain(dataclasses.asdict(config)))), encoding="utf-8")


def plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of what TOML knows, without None."""
    return {
        key: plain(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for key, value in table.items()
        if value is not None
    }


def flatten(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a table and of the tables in it."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value)
        else:
            yield key, value


def option_types(kind: Any) -> dict[str, Any]:
    """Return the names and types of all options of a configuration class, those of its groups included."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        found |= option_types(hint) if dataclasses.is_dataclass(hint) else {name: hint}
    return found


def parse_values(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Parse options as if they were typed. ValueError, naming the source, for one of another name or type."""
    known = option_types(kind)
    for name in values:
        if name not in known:
            raise ValueError(f"{source}: no option {name!r}{did_you_mean(name, known)}")
    flags = {name: to_flags(name, value, known[name]) for name, value in values.items()}
    try:
        return parse_quietly(kind, [word for words in flags.values() for word in words])
    except SystemExit:
        for name, words in flags.items():
            try:
                parse_quietly(kind, words)
            except SystemExit:
                expected = getattr(known[name], "__name__", str(known[name]).replace("typing.", ""))
                raise ValueError(f"{source}: {name} = {values[name]!r}, expected {expected}") from None
        raise


def parse_quietly(kind: type[Config], flags: list[str]) -> Config:
    """Parse flags without printing what is wrong with them. SystemExit where something is."""
    with redirect_stderr(StringIO()):
        return tyro.cli(kind, args=flags, console_outputs=False)


def to_flags(name: str, value: Any, kind: Any) -> list[str]:
    """Return an option as it is typed."""
    if isinstance(value, list | tuple):
        return [flag_name(name), *map(str, value)]
    if isinstance(value, bool) and kind is bool:
        return [flag_name(name) if value else flag_name(f"no_{name}")]
    return [f"{flag_name(name)}={value}"]


def recommended_presets(teacher: str, method: str, steps: int | None = None) -> list[str]:
    """Return the names of the presets that were made for a teacher, a method and a number of the student's steps.

    Args:
        teacher: its name.
        method: its name, or module:function, for which there are none.
        steps: of the student; None for any number.
    """
    names = [name for name in preset_names() if preset_option(name, "teacher") == teacher]
    names = [name for name in names if preset_option(name, "method", "dmd") == method]
    return [name for name in names if steps in (None, preset_steps(name))]


def preset_steps(name: str) -> int:
    """Return the number of steps of a preset's students."""
    return len(preset_option(name, "student_timesteps", ())) or preset_option(name, "student_steps", 1)


def preset_option(name: str, option: str, default: Any = None) -> Any:
    """Return the value that a preset or its base has for an option outside the tables; the default where none has."""
    table = read_preset(name)
    if option in table:
        return table[option]
    return preset_option(table["base"], option, default) if "base" in table else default
