"""`dmdistill reproduce`: the dispatch, and what it refuses before anything is computed."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dmdistill.commands.cli import main, parse
from dmdistill.commands.reproduce.command import EXPERIMENTS, reproduce
from dmdistill.commands.reproduce.config import ReproduceConfig


def test_every_experiment_on_the_command_line_has_a_function():
    positional = get_type_hints(ReproduceConfig)["experiment"]
    assert set(get_args(positional)) == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_the_function_of_its_name(experiment, tmp_path, monkeypatch):
    """It receives the parsed configuration, whose folder exists, and its table is returned."""
    steps = None if experiment == "fig4" else 7
    data = "images" if experiment == "family" else None
    given = ["--seeds", "2"] + ([] if steps is None else ["--steps", "7"]) + ([] if data is None else ["--data", data])
    _, config = parse(["reproduce", experiment, "--out", str(tmp_path / "a" / "b"), *given])
    module = types.ModuleType("stand-in")
    setattr(module, experiment, lambda given: {"config": given, "exists": given.out.is_dir()})
    monkeypatch.setitem(sys.modules, f"dmdistill.commands.reproduce.{EXPERIMENTS[experiment]}.command", module)
    changes = {"out": tmp_path / "a" / "b", "seeds": 2, "steps": steps, "data": data}
    assert config == dataclasses.replace(ReproduceConfig(experiment), **changes)
    assert reproduce(config) == {"config": config, "exists": True}
    assert list(config.out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "100000000000000000000"], "--seeds 100000000000000000000"),
        (["--seeds", "-3"], "--seeds -3"),
        (["--steps", "0"], "--steps 0"),
        (["--out", "file"], "file/fig3.json cannot be written: Not a directory"),
        (["--out", "file/below"], "file/below/fig3.json cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(arguments, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("precious")
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "fig3", *arguments])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert error.startswith("dmdistill: ")
    assert match in error
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("experiment", "flags"),
    [
        *(("fig3", flags) for flags in ("--guidance 3.0", "--start fashion-student", "--precision bf16")),
        ("fig3", "--data images"),
        ("ablation", "--data images"),
        *(("fig4", flags) for flags in ("--guidance 3.0", "--start nope", "--steps 3", "--device cuda")),
        ("fig4", "--guidance 1.0 --steps 3 --precision bf16"),
    ],
)
def test_a_setting_without_use_is_refused(experiment, flags, tmp_path, error_line):
    line = error_line("reproduce", experiment, "--out", tmp_path / "new", *flags.split())
    assert line == f"dmdistill: {experiment} does not use {flags}: omit it\n"
    assert list(tmp_path.iterdir()) == []


def test_methods_are_compared_with_real_images_only(error_line):
    assert "give --data, Fashion-MNIST" in error_line("reproduce", "family")


def test_an_unknown_experiment_is_refused_with_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "fgi3"])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert all(word in error for word in ("fgi3", *EXPERIMENTS))
    assert list(tmp_path.iterdir()) == []
