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

from dmdistill import __version__
from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.completion.config import CompletionConfig
from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.commands.demo.config import DemoConfig
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.export.config import ExportConfig
from dmdistill.commands.flag_values import check_values
from dmdistill.commands.help_text import command_help
from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.list_presets.config import PresetsConfig
from dmdistill.commands.options import check, expand_users, flag_name, option_values
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import from_method, from_preset, from_run, recommended_presets
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.commands.teach.config import TeachConfig
from dmdistill.commands.ui.config import UiConfig
from dmdistill.commands.unknown_words import check_words
from dmdistill.io.user_functions import describe_user_error, is_user_error
from dmdistill.training.signals import TrainingStopped

__all__ = ["main"]

DESCRIPTION = (
    "Turn a pretrained diffusion model into a generator of one or few steps by distribution matching distillation."
)
SIZES = ("batch", "batch_reg", "pair_batch", "count", "max_batch")  # the options that decide how much memory is used


@dataclass(frozen=True)
class Command:
    """A command: its configuration, and its function in the command.py beside it."""

    config: type
    function: str


COMMANDS = {
    "demo": Command(DemoConfig, "demo"),
    "distill": Command(DistillConfig, "distill"),
    "presets": Command(PresetsConfig, "list_presets"),
    "pairs": Command(PairsConfig, "pairs"),
    "sample": Command(SampleConfig, "sample"),
    "evaluate": Command(EvaluateConfig, "evaluate"),
    "bench": Command(BenchConfig, "bench"),
    "export": Command(ExportConfig, "export"),
    "info": Command(InfoConfig, "info"),
    "ui": Command(UiConfig, "ui"),
    "plan": Command(PlanConfig, "plan"),
    "teach": Command(TeachConfig, "teach"),
    "convert": Command(ConvertConfig, "convert"),
    "classifier": Command(ClassifierConfig, "train_classifier"),
    "reproduce": Command(ReproduceConfig, "reproduce"),
    "completion": Command(CompletionConfig, "completion"),
}
HELP = ("-h", "--help", "--help-all")
BUNDLED = {"teach": Path("datasets/fashion-mnist"), "pairs": "fashion", "distill": "fashion", "plan": "fashion"}
"""The default data or teacher of the commands with presets: for it, the preset of its method is the default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. What the user can mend ends in one line and exit code 2; DMDISTILL_DEBUG=1 shows a traceback.

    Training that a signal has ended early, with a checkpoint, has the exit code 128 plus the signal's number.
    """
    config: Any = None
    try:
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        if not arguments or arguments[0] in ("--version", *HELP):
            print(f"dmdistill {__version__}" if arguments[:1] == ["--version"] else short_help())
            return
        check_words(
            [word for word in arguments if word not in HELP], {name: one.config for name, one in COMMANDS.items()}
        )
        if asked := [word for word in arguments if word in HELP]:
            print(long_help(arguments, everything="--help-all" in asked))
            return
        name, config = parse(arguments)
        check(config)
        module = importlib.import_module(f"{COMMANDS[name].config.__module__.removesuffix('.config')}.command")
        getattr(module, COMMANDS[name].function)(config)
    except BrokenPipeError:  # of stdout: `exit_if_closed` is around
        raise
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except TrainingStopped as stopped:
        raise SystemExit(stopped.exit_code) from None
    except Exception as error:
        message = describe_failure(error, config)
        if message is None or os.environ.get("DMDISTILL_DEBUG"):
            raise
        fail(message)


def describe_failure(error: Exception, config: Any) -> str | None:
    """Return what the user can mend, in one line; None for a fault of this package."""
    if isinstance(error, RuntimeError | MemoryError):
        from dmdistill.training.device import is_out_of_memory  # which loads torch, as whatever ran out of memory has

        if is_out_of_memory(error):
            flags = [flag_name(name) for name in SIZES if name in option_values(config)]
            return f"out of memory: try a smaller {' or '.join(flags) or 'model'}"
    if is_user_error(error):
        return f"{describe_user_error(error)}; DMDISTILL_DEBUG=1 shows the traceback"
    return str(error) if isinstance(error, ValueError | OSError | FloatingPointError) else None


def short_help() -> str:
    """Return what each command does, in a line."""
    summaries = {name: (command.config.__doc__ or "").split(":")[0].split("(")[0] for name, command in COMMANDS.items()}
    lines = [f"  {name:<11} {summary.splitlines()[0].rstrip(' .')}" for name, summary in summaries.items()]
    lines = ["usage: dmdistill COMMAND [OPTIONS]", "", DESCRIPTION, "", *lines]
    return "\n".join([*lines, "", "`dmdistill COMMAND --help` lists the options of a command."])


def long_help(arguments: list[str], *, everything: bool) -> str:
    """Return the help of a command; where it has presets, with the values that the other arguments choose."""
    words = [word for word in arguments if word not in HELP]
    config = parse(words)[1] if words[0] in BUNDLED else None
    return command_help(words[0], COMMANDS[words[0]].config, config, everything=everything)


def fail(message: str, *, code: int = 2) -> None:
    """Print a message to stderr and exit."""
    print(f"dmdistill: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def parse(arguments: list[str]) -> tuple[str, Any]:
    """Return the command and its configuration: options of a preset or of a resumed run, with the flags over them."""
    if arguments[0] in COMMANDS:
        check_values(arguments, COMMANDS[arguments[0]].config)
    config = parse_flags(arguments, {})
    name = next(name for name, command in COMMANDS.items() if type(config) is command.config)
    if folder := getattr(config, "resume", None):
        defaults = {name: from_run(type(config), folder.expanduser())}
    elif preset := getattr(config, "preset", "") or bundled_preset(name, config):
        defaults = {name: from_preset(type(config), preset, **typed_method(config))}
    elif method := typed_method(config):
        defaults = {name: from_method(type(config), **method)}
    else:
        defaults = {}
    return name, expand_users(parse_flags(arguments, defaults))


def typed_method(config: Any) -> dict[str, str]:
    """Return the method as a change of options, where one is typed."""
    method = getattr(config, "method", "dmd")
    return {"method": method} if method != "dmd" else {}


def bundled_preset(name: str, config: Any) -> str:
    """Return the preset of the bundled teacher, or of its data, for the method of a config; "" for other teachers."""
    source = config.data if name == "teach" else getattr(config, "teacher", None)
    if name not in BUNDLED or source != BUNDLED[name]:
        return ""
    if not typed_method(config):
        return "fashion"
    names = recommended_presets(config.teacher, config.method, config.student.step_count)
    return next(iter(names or recommended_presets(config.teacher, config.method)), "")


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
