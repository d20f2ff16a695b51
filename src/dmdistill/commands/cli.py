"""The command `dmdistill`: parse, then hand the configuration to the command. `--help` loads no torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.export.config import ExportConfig
from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.options import check, flag_name, option_values
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import from_preset, from_run
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.commands.teach.config import TeachConfig

__all__ = ["main"]

DESCRIPTION = "Turn a pretrained diffusion model into a one-step generator by distribution matching distillation."
SIZES = ("batch", "batch_reg", "pair_batch", "count", "max_batch")  # the options that decide how much memory is used


@dataclass(frozen=True)
class Command:
    """A command: its configuration, and its function in the folder's command.py."""

    config: type
    function: str


COMMANDS = {
    "distill": Command(DistillConfig, "distill"),
    "pairs": Command(PairsConfig, "pairs"),
    "sample": Command(SampleConfig, "sample"),
    "evaluate": Command(EvaluateConfig, "evaluate"),
    "bench": Command(BenchConfig, "bench"),
    "export": Command(ExportConfig, "export"),
    "info": Command(InfoConfig, "info"),
    "plan": Command(PlanConfig, "plan"),
    "teach": Command(TeachConfig, "teach"),
    "convert": Command(ConvertConfig, "convert"),
    "classifier": Command(ClassifierConfig, "train_classifier"),
    "reproduce": Command(ReproduceConfig, "reproduce"),
}
BUNDLED = {"teach": Path("datasets/fashion-mnist"), "pairs": "fashion", "distill": "fashion", "plan": "fashion"}
"""The default data or teacher of the commands with presets: for it, its own preset `fashion` is the default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. What the user can mend ends in one line and exit code 2; DMDISTILL_DEBUG=1 shows a traceback."""
    config: Any = None
    try:
        name, config = parse(list(sys.argv[1:] if arguments is None else arguments))
        check(config)
        module = importlib.import_module(f"dmdistill.commands.{name}.command")
        getattr(module, COMMANDS[name].function)(config)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("DMDISTILL_DEBUG"):
            raise
        fail(str(error))
    except (RuntimeError, MemoryError) as error:
        from dmdistill.training.device import is_out_of_memory  # which loads torch, as whatever ran out of memory has

        if os.environ.get("DMDISTILL_DEBUG") or not is_out_of_memory(error):
            raise
        flags = [flag_name(name) for name in SIZES if name in option_values(config)]
        fail(f"out of memory: try a smaller {' or '.join(flags) or 'model'}")
    except KeyboardInterrupt:
        fail("interrupted", code=130)


def fail(message: str, *, code: int = 2) -> None:
    """Print a message to stderr and exit."""
    print(f"dmdistill: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def parse(arguments: list[str]) -> tuple[str, Any]:
    """Return the command and its configuration: options of a preset or of a resumed run, with the flags over them."""
    config = parse_flags(arguments, {})
    name = next(name for name, command in COMMANDS.items() if type(config) is command.config)
    if folder := getattr(config, "resume", None):
        default = from_run(type(config), folder)
    elif preset := getattr(config, "preset", "") or bundled_preset(name, config):
        default = from_preset(type(config), preset)
    else:
        return name, config
    return name, parse_flags(arguments, {name: default})


def bundled_preset(name: str, config: Any) -> str:
    """Return the preset of the bundled teacher, or of its data, where a command uses them; "" elsewhere."""
    source = config.data if name == "teach" else getattr(config, "teacher", None)
    return "fashion" if name in BUNDLED and source == BUNDLED[name] else ""


def parse_flags(arguments: list[str], defaults: dict[str, Any]) -> Any:
    """Parse a command line, with other defaults of some commands."""
    kinds = tuple(
        Annotated[
            command.config,
            subcommand(name, default=defaults[name]) if name in defaults else subcommand(name),
        ]
        for name, command in COMMANDS.items()
    )
    return tyro.cli(Union[kinds], prog="dmdistill", description=DESCRIPTION, args=arguments)  # type: ignore[arg-type] # noqa: UP007
