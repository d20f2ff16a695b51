"""Commands and flags that do not exist, with the ones that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from dmdistill.commands.help_text import list_options
from dmdistill.io.errors import did_you_mean

__all__ = ["check_words", "known_flags"]

SYNONYMS = {"train": "distill", "generate": "sample", "eval": "evaluate", "fid": "evaluate"}
"""Usual names of commands elsewhere."""

FLAGS = {
    "--batch-size": "--batch",
    "--train-batch-size": "--batch",
    "--cfg": "--guidance",
    "--cfg-scale": "--guidance",
    "--checkpoint-every": "--save-every",
    "--checkpointing-steps": "--save-every",
    "--cls-loss-weight": "--gan-weight",
    "--dataset": "--data",
    "--dfake-gen-update-ratio": "--fake-steps",
    "--ema": "--ema-halflives",
    "--ema-decay": "--ema-halflives",
    "--epochs": "--steps",
    "--fp16": "--precision",
    "--bf16": "--precision",
    "--gradient-accumulation-steps": "--accumulate",
    "--gradient-checkpointing": "--checkpointing",
    "--guidance-scale": "--guidance",
    "--iterations": "--steps",
    "--learning-rate": "--lr",
    "--lora": "--lora-student",
    "--lora-rank": "--lora-student",
    "--loss": "--method",
    "--max-grad-norm": "--grad-clip",
    "--max-steps": "--steps",
    "--max-train-steps": "--steps",
    "--mixed-precision": "--precision",
    "--model": "--teacher",
    "--n-samples": "--count",
    "--no-gan": "--gan-weight 0",
    "--no-regression": "--lambda-reg 0",
    "--num-images": "--images",
    "--num-inference-steps": "--student-steps",
    "--num-samples": "--count",
    "--num-steps": "--steps",
    "--num-train-steps": "--steps",
    "--output": "--out",
    "--output-dir": "--out",
    "--pretrained-model-name-or-path": "--teacher",
    "--rank": "--lora-student",
    "--report-to": "--log-to",
    "--resolution": "--side",
    "--resume-from-checkpoint": "--resume",
    "--train-data-dir": "--data",
    "--wandb": "--log-to wandb",
}
"""Usual names of options elsewhere, and ours."""


def check_words(arguments: list[str], configs: Mapping[str, type]) -> None:
    """Raise a ValueError for an unknown command, or for a flag that the command lacks.

    Args:
        arguments: of the command line; the first is no flag.
        configs: the commands, and the classes of their configurations.
    """
    name, *words = arguments
    if name.startswith("--tyro-"):
        return
    if name.startswith("-"):
        raise ValueError(f"{name} stands before the command: dmdistill COMMAND {name} ..., see dmdistill --help")
    if name not in configs:
        hint = f"; did you mean {SYNONYMS[name]!r}?" if name in SYNONYMS else did_you_mean(name, configs)
        expected = f", expected one of {', '.join(configs)}"
        raise ValueError(f"unknown command {name!r}{hint or expected}")
    known = known_flags(configs[name])
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if flag.startswith("--") and len(flag) > 2 and flag not in known and not flag.startswith("--tyro-"):
            raise ValueError(f"{name} has no option {flag}{hint_at(flag, name, configs)}")


def known_flags(kind: type) -> list[str]:
    """List the flags of a command's configuration."""
    return [flag for option in list_options(kind) for flag in option.flags]


def hint_at(flag: str, command: str, configs: Mapping[str, type]) -> str:
    """Say which option was probably meant, which commands have it, or how all are listed."""
    known = known_flags(configs[command])
    usual = f"{flag}s" if f"{flag}s" in known else FLAGS.get(flag, "")
    longer = [one for one in known if one.startswith(f"{flag}-")]
    near = [usual] if usual.split(" ")[0] in known else longer or difflib.get_close_matches(flag, known, cutoff=0.65)
    others = [name for name, kind in configs.items() if flag in known_flags(kind)]
    if near and not (others and near[0] != usual):
        return f"; did you mean {near[0]}? All options: dmdistill {command} --help-all"
    if others:
        return f", which is one of {', '.join(others)}. All options: dmdistill {command} --help-all"
    return f". All options: dmdistill {command} --help-all"
