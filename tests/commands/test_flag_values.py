"""Values of another type than a flag has, and words that belong to no flag, are answered in one line."""

import pytest

from dmdistill.commands.cli import COMMANDS, main
from dmdistill.commands.flag_values import check_values
from dmdistill.commands.help_text import list_options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("distill --steps ten", "--steps ten, expected an integer"),
        ("distill --steps=1.5", "--steps 1.5, expected an integer"),
        ("distill --lr fast", "--lr fast, expected a number"),
        ("distill --betas 0.9", "--betas 0.9, expected 2 numbers"),
        ("distill --betas 0.9 x", "--betas 0.9 x, expected 2 numbers"),
        ("distill --student-timesteps 3 two", "--student-timesteps 3 two, expected one or more numbers"),
        ("distill --discriminator-layers", "--discriminator-layers without a value, expected one or more texts"),
        ("distill --strategy dpp", "--strategy dpp, expected one of ddp, fsdp; did you mean 'ddp'?"),
        ("distill --steps", "--steps without a value, expected an integer"),
        ("distill --steps --lr 1", "--steps without a value, expected an integer"),
        ("distill --out", "--out without a value, expected a path"),
        ("distill --teacher", "--teacher without a value, expected a text"),
        ("distill cifar10", "distill takes no argument 'cifar10'. All options: dmdistill distill --help-all"),
        ("distill --match True", "distill takes no argument 'True'. All options: dmdistill distill --help-all"),
        ("sample", "sample without MODEL, expected dmdistill sample MODEL. Model: a name, its folder or run"),
        ("sample --count 3", "sample without MODEL, expected dmdistill sample MODEL."),
        ("export fashion-student", "export without OUT, expected dmdistill export STUDENT OUT."),
        ("reproduce fig5", "EXPERIMENT fig5, expected one of fig3, fig4, ablation"),
    ],
)
def test_one_line_says_what_is_wrong(line, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    printed = capsys.readouterr()
    assert printed.err.startswith(f"dmdistill: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    "line",
    [
        "distill --steps 5 --lr 1e-3 --betas 0 .99 --no-match --ema-halflives 5 10 --decoder None --seed -1",
        "distill --student_timesteps=3 --out=x",
        "sample fashion-student --labels 1 coat --labels 3 --prompt a",
        "sample --count 3 fashion-student",
        "plan --peak-tflops None",
        "presets",
        "presets cifar10",
    ],
)
def test_values_of_the_right_type_pass(line):
    words = line.split()
    check_values(words, COMMANDS[words[0]].config)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_value_of_every_option_is_checked(command):
    """Of each flag: without a value, and with one of no type."""
    for option in list_options(COMMANDS[command].config):
        for flag in option.flags if option.values else ():
            with pytest.raises(ValueError, match=f"^{flag} without a value, expected "):
                check_values([command, flag], COMMANDS[command].config)
            if not option.values.startswith(("TEXT", "PATH")):
                with pytest.raises(ValueError, match=f"^{flag} nonsense, expected "):
                    check_values([command, flag, "nonsense"], COMMANDS[command].config)
