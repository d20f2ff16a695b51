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
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import check_numbers, flag_of, with_preset, with_run
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.commands.teach.config import TeachConfig

__all__ = ["main"]

SIZES = ("batch", "batch_reg", "count", "max_batch")  # the settings that decide how much memory is asked for
DESCRIPTION = "Turn a pretrained diffusion model into a one-step generator by distribution matching distillation."


@dataclass(frozen=True)
class Command:
    """config: its class. function: what runs it, in the module of that name. section: of the presets, if it has one."""

    config: type
    module: str
    function: str
    section: str | None = None


COMMANDS = {
    "teach": Command(TeachConfig, "teach", "teach", "teach"),
    "pairs": Command(PairsConfig, "pairs", "pairs", "pairs"),
    "distill": Command(DistillConfig, "distill", "distill", "distill"),
    "plan": Command(PlanConfig, "plan", "plan", "distill"),
    "sample": Command(SampleConfig, "sample", "sample"),
    "evaluate": Command(EvaluateConfig, "evaluate", "evaluate"),
    "bench": Command(BenchConfig, "bench", "bench"),
    "export": Command(ExportConfig, "export", "export"),
    "info": Command(InfoConfig, "info", "info"),
    "convert": Command(ConvertConfig, "convert", "convert"),
    "classifier": Command(ClassifierConfig, "classifier", "train_classifier", "classifier"),
    "reproduce": Command(ReproduceConfig, "reproduce", "reproduce"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. What the user can mend ends in one line and exit code 2; DMDISTILL_DEBUG=1 shows a traceback."""
    arguments, asked = list(sys.argv[1:] if arguments is None else arguments), None
    try:
        check_numbers(asked := parse(arguments))
        command = next(command for command in COMMANDS.values() if type(asked) is command.config)
        module = importlib.import_module(f"dmdistill.commands.{command.module}.command")
        getattr(module, command.function)(asked)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("DMDISTILL_DEBUG"):
            raise
        print(f"dmdistill: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, MemoryError) as error:
        from dmdistill.training.device import is_out_of_memory

        if os.environ.get("DMDISTILL_DEBUG") or not is_out_of_memory(error):
            raise
        flags = [flag_of(name) for name in SIZES if hasattr(asked, name)]
        print(f"dmdistill: out of memory: try a smaller {' or '.join(flags) or 'model'}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("dmdistill: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def parse(arguments: Sequence[str]) -> Any:
    """The configuration asked for: the settings of a preset or of a resumed run, with the flags over them."""
    kinds = tuple(
        Annotated[
            command.config,
            subcommand(name, default=settings(name, command, arguments)) if command.section else subcommand(name),
        ]
        for name, command in COMMANDS.items()
    )
    return tyro.cli(Union[kinds], prog="dmdistill", description=DESCRIPTION, args=arguments)  # type: ignore[arg-type] # noqa: UP007


def settings(name: str, command: Command, arguments: Sequence[str]) -> Any:
    """What the flags of a command with presets start from; only the command that is asked for reads its preset."""
    if name not in arguments[:1] or command.section is None:
        return command.config()
    if folder := flag("--resume", arguments):
        return with_run(command.config(), Path(folder))
    return with_preset(command.config(), flag("--preset", arguments) or "fashion", command.section)


def flag(name: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag, before the parser sees it: other flags' defaults depend on it."""
    for i, word in enumerate(arguments):
        if word == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
