"""The text of `--help` and `--help-all`, from the dataclasses of options. Imports no torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from dmdistill.commands.options import flag_name

__all__ = ["Option", "command_help", "item_type", "list_options"]

GENERAL = "Options"
LEFT, WIDEST = 30, 100  # columns of the flags, and of the text at most
WORDS = {str: "TEXT", Path: "PATH", int: "INT", float: "FLOAT"}
COURSE: dict[str, tuple[str, ...]] = {
    "Teacher and data": ("teacher", "prompts", "guidance", "height", "data", "pairs", "pair_count", "start"),
    "Method and its length": ("preset", "method", "student_steps", "steps", "batch", "lr", "lambda_reg", "fake_steps"),
}
RUN = ("out", "resume", "seed", "device", "precision", "threads")
EVERYDAY: dict[str, dict[str, tuple[str, ...]]] = {
    "distill": {**COURSE, "Run": ("reference", *RUN)},
    "plan": {"Devices": ("processes", "peak_tflops", "utilization", "strategy", "json"), **COURSE},
    "teach": {
        "Data and network": ("data", "side", "kind", "prediction", "model_channels", "channel_mult"),
        "Training": ("preset", "steps", "batch", "lr", "ema_halflife", "augment"),
        "Run": RUN,
    },
}
"""The options that `--help` of commands with many shows, below headings; `--help-all` shows all."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: of the field.
        flags: as they are typed, such as --match and --no-match; none of a positional argument.
        values: what follows them, such as {edm,ddpm} or FLOAT; of a positional argument its name.
        text: what it is, in sentences.
        default: the value that it has without a flag.
        required: it has no default.
        group: heading of its group.
        hint: its type.
    """

    name: str
    flags: tuple[str, ...]
    values: str
    text: str
    default: Any
    required: bool
    group: str
    hint: Any


def list_options(kind: type, config: Any = None) -> list[Option]:
    """List the options of a configuration class and its groups.

    Args:
        kind: the dataclass.
        config: one of its configurations, whose values become the defaults; else those of the class.
    """
    return list(walk(kind, config, GENERAL))


def walk(kind: Any, config: Any, group: str) -> Iterator[Option]:
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner, extras = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        value = getattr(config, field.name) if config is not None else default_value(field)
        if dataclasses.is_dataclass(inner):
            yield from walk(inner, value, first_sentence(inspect.getdoc(inner) or ""))
            continue
        positional = hint == Positional[inner]
        aliases = [name for extra in extras for name in getattr(extra, "aliases", None) or ()]
        names = [flag_name(field.name), *aliases, *([flag_name(f"no_{field.name}")] if inner is bool else [])]
        values = field.name.upper() if positional else metavar(inner)
        flags, text = () if positional else tuple(names), texts.get(field.name, "")
        required = field.default is field.default_factory is dataclasses.MISSING
        yield Option(field.name, flags, values, text, value, required, group, inner)


def default_value(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def field_texts(kind: type) -> dict[str, str]:
    """Return the strings below the fields of a class and of its bases, by the fields' names."""
    texts = {}
    for one in reversed([one for one in kind.__mro__ if dataclasses.is_dataclass(one)]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(below.value)).replace("\n", " ")
    return texts


def item_type(hint: Any) -> tuple[Any, int | None]:
    """Return the type of an option's values, and how many there are: 0 of a bool, None for one or more."""
    if hint is bool:
        return bool, 0
    if get_origin(hint) in (Union, UnionType):
        return item_type(next(one for one in get_args(hint) if one is not NoneType))
    if get_origin(hint) is Annotated:
        return item_type(get_args(hint)[0])
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return item_type(items[0])[0], None if Ellipsis in items else len(items)
    return hint, 1


def metavar(hint: Any) -> str:
    """Return what is typed behind a flag of a type; "" of a bool."""
    item, count = item_type(hint)
    word = f"{{{','.join(map(str, get_args(item)))}}}" if get_origin(item) is Literal else WORDS.get(item, "TEXT")
    return f"{word} ..." if count is None else " ".join([word] * count)


def command_help(name: str, kind: type, config: Any = None, *, everything: bool = False, width: int = 0) -> str:
    """Return the help of a command.

    Args:
        name: of the command.
        kind: class of its configuration.
        config: the configuration whose values are the defaults.
        everything: show all options, in the groups of the configuration.
        width: of lines; 0 for that of the terminal, at most 100.
    """
    width = width or min(shutil.get_terminal_size().columns, WIDEST)
    options = list_options(kind, config)
    positional = [option for option in options if not option.flags]
    words = [one.values if one.required else f"[{one.values}]" for one in positional]
    parts = [" ".join(["usage: dmdistill", name, *words, "[OPTIONS]"])]
    parts.append(textwrap.fill(" ".join(inspect.getdoc(kind).split()), width, break_on_hyphens=False))  # type: ignore[union-attr]
    if preset := getattr(config, "preset", None):
        parts.append(f"The defaults shown are those of --preset {preset}.")
    groups = {} if everything else EVERYDAY.get(name, {})
    if groups:
        known = {option.name: option for option in options}
        parts += [section(title, [known[one] for one in names], width) for title, names in groups.items()]
        rest = len(options) - sum(map(len, groups.values()))
        return "\n\n".join([*parts, f"All options ({rest} more): dmdistill {name} --help-all"])
    if positional:
        parts.append(section("Arguments", positional, width))
    for title in dict.fromkeys(option.group for option in options if option.flags):
        parts.append(section(title, [one for one in options if one.flags and one.group == title], width))
    return "\n\n".join(parts)


def section(title: str, options: list[Option], width: int) -> str:
    """Return a heading and the options below it."""
    return "\n".join([textwrap.fill(f"{title}:", width), *(describe(option, width) for option in options)])


def describe(option: Option, width: int) -> str:
    """Return the lines of an option: flags on the left, text and default on the right."""
    left = f"  {', '.join(option.flags)} {option.values}".rstrip().replace("   ", "  ")
    indent = " " * LEFT
    lines = textwrap.wrap(option.text + describe_default(option.default), width - LEFT, break_on_hyphens=False)
    if len(left) < LEFT - 1:
        return "\n".join([f"{left:<{LEFT}}{lines[0]}", *(indent + line for line in lines[1:])])
    return "\n".join([left, *(indent + line for line in lines)])


def describe_default(value: Any) -> str:
    """Return the default in brackets; "" where it is nothing."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f" (default: {'on' if value else 'off'})"
    items = value if isinstance(value, tuple) else (value,)
    return f" (default: {' '.join(f'{item:g}' if isinstance(item, float) else str(item) for item in items)})"


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring without its full stop, as a heading."""
    return re.split(r"(?<!\bEq)\. ", " ".join(text.split()))[0].rstrip(".")
