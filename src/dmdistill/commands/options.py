"""Options that several commands share, and the checks of options. Imports no torch."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    "ComputeOptions",
    "ImageSizeOptions",
    "SolverOptions",
    "change",
    "check",
    "expand_users",
    "flag_name",
    "option_values",
    "require",
    "require_at_least",
    "require_name",
    "require_positive",
    "resolve_paths",
]

Config = TypeVar("Config")

LARGEST = 2**31 - 1  # of a count: what torch takes as a size, and more than any run can do


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how to compute."""

    device: str = "auto"
    """Device: cpu, cuda, cuda:1 ...; auto uses CUDA where there is a GPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks; auto is bf16 where that is faster. Trained weights stay in fp32."""
    threads: int = 0
    """CPU threads; 0 uses all. With 1 the same seed gives the same result, bit for bit."""

    def check(self) -> None:
        """Raise a ValueError for a number of threads that torch cannot start."""
        most = 8 * (os.cpu_count() or 1)  # of very many torch ends the process without a word
        require(self, f"from 1 to {most}, or 0 for all", lambda value: 0 <= value <= most, "threads")


@dataclass(frozen=True)
class SolverOptions:
    """The teacher's ODE solver and its classifier-free guidance."""

    solver: Literal["heun", "dpmpp", "ddim", "pndm"] | None = None
    """ODE solver; dpmpp is DPM-Solver++(2M). N steps take N evaluations, heun's 2 N - 1. Default: the teacher's."""
    solver_steps: int | None = None
    """Solver steps. The default is the teacher's own."""
    guidance: float | None = None
    """Classifier-free guidance scale, in pairs and mu_real too; 1 disables it."""
    true_guidance: float | None = None
    """Scale of classifier-free guidance on top of an embedded one (Flux-dev), at twice the evaluations."""

    def check(self) -> None:
        """Raise a ValueError for a number that the option cannot have."""
        require_at_least(self, 1, "solver_steps")
        require_at_least(self, 0, "guidance", "true_guidance")


@dataclass(frozen=True)
class ImageSizeOptions:
    """The size of the images of a latent model."""

    height: int | None = None
    """Height in pixels of images of a latent model. The default is --width, else that of the model."""
    width: int | None = None
    """Width in pixels of images of a latent model. The default is --height, else that of the model."""

    def check(self) -> None:
        """Raise a ValueError for a size that no image has."""
        require_at_least(self, 1, "height", "width")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width; None for the model's own. Images are square where only one of the two is given."""
        height, width = self.height or self.width, self.width or self.height
        return None if height is None or width is None else (height, width)


def check(config: Any) -> None:
    """Check a configuration and its groups, before anything is loaded or written.

    ValueError, naming the flag, where a value is of another type, as it can be in Python, where a number is NaN or
    infinite, where a seed is negative or too large, and for all that a group's own `check` refuses.
    """
    for group in groups(config):
        hints = get_type_hints(type(group))
        for field in dataclasses.fields(group):
            value: Any = getattr(group, field.name)
            check_type(field.name, value, hints[field.name])
            numbers: Any = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ValueError(f"{flag_name(field.name)} {value}, expected a finite number")
            if any(type(number) is int and abs(number) > LARGEST for number in numbers) and field.name != "seed":
                raise ValueError(f"{flag_name(field.name)} {value}, expected at most {LARGEST}")
            if field.name == "seed" and not 0 <= int(value) < 2**63:  # type: ignore[call-overload, arg-type]
                raise ValueError(f"--seed {value}, expected 0 to 2**63 - 1")
    for group in reversed([*groups(config)]):  # a group's own values before what they are together
        if hasattr(group, "check"):
            group.check()


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError where the value of an option is not of its type."""
    if not fits(value, hint):
        expected = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint).replace("typing.", "")
        by_name = f": give its name, such as '__main__:{value.__name__}'" if inspect.isfunction(value) else ""
        raise ValueError(f"{flag_name(name)} {value!r:.80}, expected {expected.replace('pathlib.', '')}{by_name}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, of those that options have; an integer is a float too."""
    kinds = get_args(hint)
    match get_origin(hint):
        case typing.Literal:
            return value in kinds
        case typing.Union | types.UnionType:
            return any(fits(value, kind) for kind in kinds)
        case builtins.tuple:
            if get_origin(kinds[0]) is tuple:  # of a flag that is given several times, whose values were joined
                return isinstance(value, tuple)
            expected = len(value) * kinds[:1] if kinds[-1] is Ellipsis and isinstance(value, tuple) else kinds
            return isinstance(value, tuple) and len(value) == len(expected) and all(map(fits, value, expected))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def require(config: Any, expected: str, allowed: Callable[[Any], bool], *names: str) -> None:
    """Raise a ValueError, naming the flag, where one of these options has a value that is not allowed.

    Args:
        config: the group that has the options.
        expected: what is allowed, in words.
        allowed: takes a value. Of a tuple every item must be allowed; None always is.
        names: of the options.
    """
    for name in names:
        value = getattr(config, name)
        items = value if isinstance(value, tuple) else (value,)
        if not all(item is None or allowed(item) for item in items):
            text = " ".join(map(str, items))
            raise ValueError(f"{flag_name(name)} {text}, expected {expected}")


def require_at_least(config: Any, least: float, *names: str) -> None:
    """Raise a ValueError, naming the flag, where one of these numbers is less than `least`."""
    require(config, f"at least {least}", lambda number: number >= least, *names)


def require_positive(config: Any, *names: str) -> None:
    """Raise a ValueError, naming the flag, where one of these numbers is 0 or less."""
    require(config, "a number above 0", lambda number: number > 0, *names)


def require_name(config: object, option: str, names: tuple[str, ...]) -> None:
    """Raise a ValueError where an option is neither one of some names nor module:function."""
    expected = f"{', '.join(names)} or module:function"
    require(config, expected, lambda value: value in names or ":" in value, option)


def expand_users(config: Config) -> Config:
    """Return a configuration whose paths, and names of sources, that begin with ~ name the home folder instead."""
    changes = {}
    for name, value in option_values(config).items():
        if isinstance(value, Path | str) and str(value).startswith("~"):
            expanded = os.path.expanduser(value)
            changes[name] = Path(expanded) if isinstance(value, Path) else expanded
    return change(config, **changes) if changes else config


def resolve_paths(config: Config, *names: str) -> Config:
    """Return a configuration in which these options, where they name something that exists, are absolute paths."""
    values = {name: value for name, value in option_values(config).items() if name in names and value is not None}
    paths = {name: Path(value).absolute() for name, value in values.items() if str(value) and os.path.exists(value)}
    return change(
        config, **{name: path if isinstance(values[name], Path) else str(path) for name, path in paths.items()}
    )


def flag_name(name: str) -> str:
    """Return an option's name as it is typed."""
    return f"--{name.replace('_', '-')}"


def groups(config: Any) -> Iterator[Any]:
    """Yield a configuration and its groups of options."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from groups(value)


def option_values(config: Any) -> dict[str, Any]:
    """Return the values of all options of a configuration by their names, those of its groups included."""
    values = {field.name: getattr(group, field.name) for group in groups(config) for field in dataclasses.fields(group)}
    return {name: value for name, value in values.items() if not dataclasses.is_dataclass(value)}


def change(config: Config, **values: Any) -> Config:
    """Return a configuration with other values of some options, whichever group they are in.

    Args:
        config: the configuration to start from.
        values: by the options' names, or groups by theirs. TypeError for an option that the configuration lacks.
    """
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes = {name: values.pop(name) for name in own if name in values}
    for name, group in own.items():
        if dataclasses.is_dataclass(group) and name not in changes:
            inner = {key: values.pop(key) for key in option_values(group) if key in values}
            if inner:
                changes[name] = change(group, **inner)
    if values:
        raise TypeError(f"{type(config).__name__} has no option {', '.join(sorted(values))}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
