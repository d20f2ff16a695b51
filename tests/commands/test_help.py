"""Help: the everyday options first, all on request, in plain words; and hints at what was meant."""

import ast
import inspect

import pytest

from dmdistill.commands.cli import COMMANDS, main
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.help_text import EVERYDAY, command_help, list_options
from dmdistill.commands.options import option_values
from dmdistill.commands.unknown_words import FLAGS, known_flags


def printed(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_fits_its_width_and_is_in_plain_words(name):
    for everything in (False, True):
        text = command_help(name, COMMANDS[name].config, everything=everything, width=80)
        assert text.startswith(f"usage: dmdistill {name}")
        assert max(map(len, text.splitlines())) <= 80
        assert "None" not in text
        assert len(text.splitlines()) < 70 or everything
        for group in inspect.getdoc(COMMANDS[name].config).split(". ")[:1]:
            assert " ".join(group.split()) in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_help_all_with_its_text(name):
    kind = COMMANDS[name].config
    options = list_options(kind)
    assert all(option.text.endswith(".") for option in options)
    assert len({option.name for option in options}) == len(options)
    text = command_help(name, kind, everything=True, width=100)
    assert [flag for option in options for flag in option.flags if flag not in text] == []
    if kind is DistillConfig:
        assert {option.name: option.default for option in options} == option_values(kind())


@pytest.mark.parametrize("name", EVERYDAY)
def test_short_help_ends_with_how_to_see_all(name, capsys):
    text = printed(capsys, name, "--help")
    assert text.splitlines()[-1].startswith("All options (")
    assert text.splitlines()[-1].endswith(f"dmdistill {name} --help-all")
    whole = printed(capsys, name, "--help-all")
    assert len(whole) > 1.5 * len(text)
    assert "--help-all" not in whole


def test_help_shows_the_values_that_the_other_words_choose(capsys):
    assert "--steps INT                 Updates of the generator. (default: 7)" in printed(
        capsys, "distill", "--steps", "7", "-h"
    )
    assert "--lr FLOAT                  Learning rate of the generator" in printed(capsys, "distill", "--help")
    assert "(default: 0.002)" in printed(capsys, "distill", "--help")
    assert "(default: 5e-05)" in printed(capsys, "distill", "--preset", "cifar10", "--help")


def test_kinds_of_values_are_named():
    lines = command_help("distill", DistillConfig, everything=True, width=300)
    for words in ("--betas FLOAT FLOAT  ", "--ema-halflives FLOAT ...", "--match, --no-match  ", "--pairs PATH  "):
        assert words in lines
    assert "--transition {sde,ode}  " in lines
    assert "(default: on)" in lines
    assert "MODEL [OUT]" in command_help("convert", COMMANDS["convert"].config)
    assert "--labels, --class TEXT ..." in command_help("sample", COMMANDS["sample"].config)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_of_the_program_lists_the_commands(arguments, capsys):
    assert "usage: dmdistill COMMAND" in printed(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("serve runs/sd", "unknown command 'serve', expected one of demo, "),
        ("distil", "unknown command 'distil'; did you mean 'distill'?"),
        ("train", "unknown command 'train'; did you mean 'distill'?"),
        ("--steps 3 distill", "--steps stands before the command"),
        ("distill --ema 3", "distill has no option --ema; did you mean --ema-halflives?"),
        ("distill --num-steps 3", "did you mean --steps?"),
        ("distill --batch_size=3", "distill has no option --batch-size; did you mean --batch?"),
        ("distill --no-regression", "did you mean --lambda-reg 0?"),
        ("distill --lora_rank 3", "did you mean --lora-student?"),
        ("teach --ema 3", "did you mean --ema-halflife?"),
        ("distill --weight-deacy 3", "did you mean --weight-decay?"),
        ("export fashion --guidance 3", "export has no option --guidance, which is one of distill, pairs"),
        ("distill --xyzzy", "distill has no option --xyzzy. All options: dmdistill distill --help-all"),
    ],
)
def test_unknown_words_are_called_that_with_what_was_meant(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert said in error


def test_usual_names_lead_to_options_that_there_are():
    flags = {flag for command in COMMANDS.values() for flag in known_flags(command.config)}
    assert {ours.split(" ")[0] for ours in FLAGS.values()} <= flags
    assert FLAGS.keys() & set(known_flags(DistillConfig)) == set()
    source = inspect.getsource(inspect.getmodule(known_flags))
    keys = [key.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict) for key in node.keys]
    assert len(keys) == len(set(keys))
