"""Values of flags and positional arguments, checked before tyro reads them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from dmdistill.commands.help_text import Option, item_type, list_options
from dmdistill.io.errors import did_you_mean

__all__ = ["check_values"]

NAMES = {int: ("an integer", "integers"), float: ("a number", "numbers")}


def check_values(arguments: Sequence[str], kind: type) -> None:
    """Raise a ValueError for a value of another type, for a missing one, and for a word that belongs to no flag.

    Args:
        arguments: of the command line: the command, then words of which those with "--" are flags of the command.
        kind: class of the command's configuration.
    """
    command, *words = arguments
    options = list_options(kind)
    flags = {flag: option for option in options for flag in option.flags}
    positional = [option for option in options if not option.flags]
    given: list[str] = []
    while words:
        word, *words = words
        flag, equals, value = word.partition("=")
        option = flags.get(flag.replace("_", "-"))
        if option is None:
            given.append(word)
        elif equals:
            check_flag(flag, option, [value])
        else:
            words = words[check_flag(flag, option, values_before_flag(words)) :]
    for option, word in zip(positional, given, strict=False):
        check_value(option.values, item_type(option.hint)[0], [word])
    if extra := given[len(positional) :]:
        raise ValueError(f"{command} takes no argument {extra[0]!r}. All options: dmdistill {command} --help-all")
    if missing := [option for option in positional[len(given) :] if option.required]:
        usage = " ".join(option.values for option in positional if option.required)
        first = missing[0]
        raise ValueError(f"{command} without {first.values}, expected dmdistill {command} {usage}. {first.text}")


def values_before_flag(words: Sequence[str]) -> list[str]:
    """Return the words before the next flag."""
    return list(words[: next((i for i, word in enumerate(words) if word.startswith("--")), len(words))])


def check_flag(flag: str, option: Option, words: Sequence[str]) -> int:
    """Raise a ValueError where the words after a flag are no values of it; return how many of them are its."""
    item, count = item_type(option.hint)
    values = list(words if count is None else words[:count])
    if not values and count != 0:
        raise ValueError(f"{flag} without a value, expected {describe(item, count)}")
    if count and len(values) < count:
        raise ValueError(f"{flag} {' '.join(values)}, expected {describe(item, count)}")
    if not (values == ["None"] and NoneType in get_args(option.hint)):
        check_value(flag, item, values, count)
    return len(values)


def check_value(name: str, item: Any, words: Sequence[str], count: int | None = 1) -> None:
    """Raise a ValueError, beginning with a flag or the name of an argument, unless each word is an item."""
    for word in words:
        if get_origin(item) is Literal:
            choices = [str(choice) for choice in get_args(item)]
            if word not in choices:
                expected = f", expected {describe(item, count)}"
                raise ValueError(f"{name} {word}{expected}{did_you_mean(word, choices)}")
        elif item in NAMES:
            with suppress(ValueError):
                item(word)
                continue
            raise ValueError(f"{name} {' '.join(words)}, expected {describe(item, count)}")


def describe(item: Any, count: int | None) -> str:
    """Say what the values of a flag are."""
    if get_origin(item) is Literal:
        return f"one of {', '.join(map(str, get_args(item)))}"
    one, several = NAMES.get(item, ("a text" if item is str else "a path", "texts"))
    return one if count == 1 else f"one or more {several}" if count is None else f"{count} {several}"
