"""The values of a model's config.json, checked before anything is built from them."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dmdistill.core.solvers import SOLVERS
from dmdistill.io.atomic import read_json
from dmdistill.io.checksums import pop_checksum

__all__ = [
    "SAMPLING_KEYS",
    "STUDENT_KEYS",
    "check_arguments",
    "check_config",
    "check_memory",
    "check_sampling_keys",
    "check_student",
    "read_config",
    "read_object",
]

MAX_TEXT, MAX_LIST, MAX_CLASSES = 500, 64, 100_000
MAX_GUIDANCE = 1000.0
MAX_INTEGER, MAX_ENTRY, MAX_ITEMS, MAX_LEVELS = 2**24, 10_000, 100_000, 8  # in a config of another library


def is_text(value: Any) -> bool:
    """Return whether the value is a short text of one line."""
    return type(value) is str and 0 < len(value) <= MAX_TEXT and value.isprintable()


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether the value is an integer of at least `least`."""
    return type(value) is int and least <= value < 2**31


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def is_list(value: Any, check: Callable[[Any], bool], longest: int = MAX_LIST) -> bool:
    """Return whether the value is a list of which every item passes the check."""
    return type(value) is list and len(value) <= longest and all(check(item) for item in value)


COMMON = {  # key: (check, what is expected)
    "name": (is_text, "a text of one line"),
    "shape": (lambda value: is_list(value, is_count) and len(value) == 3, "[C, H, W]"),
}
OPTIONAL = {
    "classes": (lambda value: is_list(value, is_text, MAX_CLASSES), "a list of texts"),
    "licence": (is_text, "a text of one line"),
    "feature_extractor": (is_text, "a text of one line"),
}
STUDENT_KEYS = {
    "timesteps": (
        lambda value: (
            is_list(value, is_number) and all(one >= 0 and one > next_ for one, next_ in pairwise([*value, -1.0]))
        ),
        "a list of falling numbers from 0",
    ),
    "transition": (lambda value: value in ("sde", "ode"), "sde or ode"),
    "embedded_guidance": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "image_size": (lambda value: is_list(value, is_count) and len(value) == 2, "[height, width] in pixels"),
}
SAMPLING = {
    "solver": (lambda value: value in list(SOLVERS), f"one of {', '.join(SOLVERS)}"),
    "steps": (is_count, "an integer from 1"),
    "guidance": (lambda value: is_number(value) and 0 <= value <= MAX_GUIDANCE, f"a number from 0 to {MAX_GUIDANCE:g}"),
}
SAMPLING_KEYS = STUDENT_KEYS | {"guidance": SAMPLING["guidance"]}  # of a folder of diffusers, all optional
ARGUMENTS = {  # by the annotation of a parameter
    "int": (lambda value: is_count(value, 0), "an integer from 0"),
    "float": (is_number, "a finite number"),
    "str": (is_text, "a text"),
    "Sequence[int]": (lambda value: is_list(value, is_count), f"a list of at most {MAX_LIST} positive integers"),
    "Sequence[float]": (lambda value: is_list(value, is_number), f"a list of at most {MAX_LIST} numbers"),
}


def read_config(file: Path) -> dict[str, Any]:
    """Read the config.json of a teacher or a student, without its checksum.

    ValueError, naming the file, where it is of nothing such, or where its checksum differs.
    """
    config = read_json(file)
    if isinstance(config, dict) and config.get("kind") == "feature_extractor":
        raise ValueError(f"{file} describes a classifier, expected a teacher or student: --feature-extractor takes it")
    if not isinstance(config, dict) or config.get("kind") not in ("teacher", "student"):
        raise ValueError(f"{file} describes no teacher or student of dmdistill")
    pop_checksum(config, file)
    return config


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file. ValueError, naming it, for values no config has."""
    if not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, expected a JSON object")
    if (wrong := find_implausible(value, MAX_LEVELS)) is not None:
        raise ValueError(f"{file} holds {wrong!r:.100}, which is no value of a config")
    return value


def find_implausible(value: Any, depth: int) -> Any:
    """Return the first value that is too large, too long or too deep for a config; None for none."""
    if isinstance(value, dict | list):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        if depth == 0 or len(items) > MAX_ITEMS:
            return value
        return next((wrong for item in items if (wrong := find_implausible(item, depth - 1)) is not None), None)
    if isinstance(value, str):
        return value if len(value) > MAX_ENTRY else None
    if isinstance(value, float):  # schedulers do have infinities
        return value if math.isnan(value) else None
    return value if value is not None and abs(value) > MAX_INTEGER else None


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError, naming the key and its value, for a value of a wrong kind, or one that contradicts another."""
    needed = COMMON | (SAMPLING if config["kind"] == "teacher" else {})
    for key, (check, expected) in (needed | OPTIONAL | STUDENT_KEYS).items():
        value = config.get(key)
        if key in needed and key not in config:
            raise ValueError(f"it has no {key!r}")
        if (key in needed or value is not None) and not check(value):
            raise ValueError(f"{key} is {value!r:.200}, expected {expected}")
    network = config.get("network")
    if not isinstance(network, dict):
        raise ValueError(f"network is {network!r:.200}, expected the class and the arguments of a network")
    classes, label_dim = len(config.get("classes") or []), network.get("label_dim", 0)
    if classes != label_dim:
        raise ValueError(f"it names {classes} classes, and label_dim of its network is {label_dim!r:.200}")
    side, channels = network.get("img_resolution"), network.get("in_channels")
    if config["shape"] != [channels, side, side] or network.get("out_channels") != channels:
        raise ValueError(f"shape is {config['shape']}, its network takes and makes other images: {network!r:.200}")


def check_student(config: dict[str, Any]) -> None:
    """Raise ValueError for a wrong value in the config of a student that is built on its teacher."""
    if config["kind"] != "student":
        raise ValueError(f"kind is {config['kind']!r}, expected 'student'")
    for key in ("name", "teacher"):
        if not is_text(config.get(key)):
            raise ValueError(f"{key} is {config.get(key)!r:.200}, expected a text of one line")
    check_sampling_keys(config)
    lora = config.get("lora") or {"rank": 1}
    if not isinstance(lora, dict) or lora.keys() - {"rank", "alpha"}:
        raise ValueError(f"lora is {lora!r:.200}, expected a rank and an alpha")
    if not is_count(lora.get("rank")):
        raise ValueError(f"rank of lora is {lora.get('rank')!r:.200}, expected an integer from 1")
    if lora.get("alpha") is not None and not is_number(lora["alpha"]):
        raise ValueError(f"alpha of lora is {lora['alpha']!r:.200}, expected a number")


def check_sampling_keys(config: dict[str, Any]) -> None:
    """Raise ValueError for wrong values of what sampling takes: a student's times and so on, a teacher's guidance."""
    for key, (check, expected) in SAMPLING_KEYS.items():
        if key in config and not check(config[key]):
            raise ValueError(f"{key} is {config[key]!r:.200}, expected {expected}")


def check_arguments(kind: type, arguments: dict[str, Any]) -> None:
    """Raise ValueError where arguments of a class are unknown, missing or of another type than it declares."""
    parameters = {name: one for name, one in inspect.signature(kind).parameters.items() if one.annotation in ARGUMENTS}
    if unknown := sorted(arguments.keys() - parameters.keys()):
        raise ValueError(f"{kind.__name__} has no argument {unknown[0]!r:.200}")
    for name, parameter in parameters.items():
        check, expected = ARGUMENTS[parameter.annotation]
        if name in arguments and not check(arguments[name]):
            raise ValueError(f"{name} of {kind.__name__} is {arguments[name]!r:.200}, expected {expected}")
        if name not in arguments and parameter.default is parameter.empty:
            raise ValueError(f"{kind.__name__} needs the argument {name!r}")


def check_memory(elements: int, shape: Sequence[int] = (0,)) -> None:
    """Raise ValueError where weights of so many numbers, or one sample of this shape, do not fit in memory."""
    needed = 4 * (elements + 16 * math.prod(shape))  # fp32; a network holds more than its input
    if needed > (memory := physical_memory()):
        raise ValueError(f"it needs {needed / 1e9:.3g} GB of memory, this computer has {memory / 1e9:.3g} GB")


def physical_memory() -> float:
    """Return the bytes of main memory; infinity on systems that do not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf
