"""A method, a weight and a distance of the user's own, from a file in the current folder."""

import sys

import pytest
import torch

from dmdistill.commands.distill import method_options
from dmdistill.commands.distill.command import distill
from dmdistill.commands.options import change
from dmdistill.core import divergences
from helpers.method_runs import method_run
from helpers.runs import student_bytes

MACHINE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]

SOURCE = """
from dataclasses import replace
from dmdistill.core.losses import pseudo_huber
from dmdistill.core.methods import dmd

def method(generator, real, fake):
    return dmd(generator, real, fake, lambda_reg=1.0, match_pairs=True)

def weight(at):
    return at.alpha * at.sigma  # sigma3: what multiplies the difference of the means

def distance(x, y):
    return 2 * pseudo_huber(x, y)

number = 3

def returns_a_number(generator, real, fake):
    return 3

def takes_two(generator, real):
    return dmd(generator, real, real)

def another_critic(generator, real, fake):
    objective = dmd(generator, real, fake)
    return replace(objective, critics={"critic": objective.critics["fake"]})

def no_critic(generator, real, fake):
    return replace(dmd(generator, real, fake), critics={})

def weight_of_a_number(at):
    return 1.0

def weight_of_three(at):
    return at.t[:3]

def distance_that_fails(x, y):
    return (x - y).absent

def distance_of_a_number(x, y):
    return 1.0

def distance_that_raises(x, y):
    return int("a")

def method_that_raises(generator, real, fake):
    return int("a")

def twice_kl(r):
    return 2 * r

class PerSample:
    name = "loss_own"

    def __call__(self, samples, batch, noise):
        return samples.x.flatten(1).mean(1)

def term_per_sample(generator, real, fake):
    return replace(dmd(generator, real, fake), terms={PerSample(): 1.0})
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Make the current folder one with own_functions.py."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "own_functions.py").write_text(SOURCE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_functions", raising=False)


@pytest.mark.parametrize(
    ("own", "equal"),
    [
        ({"method": "own_functions:method"}, {"match_pairs": True}),
        ({"weight": "own_functions:weight"}, {"weight": "sigma3"}),
        ({"distance": "own_functions:distance"}, {"lambda_reg": 2.0}),
    ],
    ids=["method", "weight", "distance"],
)
def test_a_function_of_ones_own_is_used(own, equal, settings, own_module):
    """The student is, bit for bit, that of the equal options, and not the default's."""
    options = {"default": {}, "own": own, "equal": equal}
    configs = [change(settings(name, report_images=0), **changes) for name, changes in options.items()]
    for config in configs:
        distill(config)
    default, first, second = (student_bytes(config.out) for config in configs)
    assert first == second != default


def test_a_divergence_of_ones_own_is_used(own_module, tiny_teacher, class_pictures, tmp_path):
    """That of 2 h is that of h: it is divided by its mean."""
    options = {"kl": "kl", "own": "own_functions:twice_kl", "default": "js"}
    runs = {
        name: method_run("f-distill", tiny_teacher, class_pictures, tmp_path / name, steps=2, divergence=divergence)
        for name, divergence in options.items()
    }
    with pytest.raises(
        ValueError, match="--divergence ks, expected rkl, kl, js, sf, neyman, sh, jf or module:function"
    ):
        distill(change(runs["kl"], divergence="ks", out=tmp_path / "none"))
    weights = {name: flat_weights(distill(change(config, report_images=0))) for name, config in runs.items()}
    torch.testing.assert_close(weights["own"], weights["kl"], rtol=1e-5, atol=1e-7)
    assert (weights["own"] - weights["default"]).abs().max() > 1e-5


def test_the_command_knows_the_names_of_all_divergences():
    assert tuple(divergences.DIVERGENCES) == method_options.DIVERGENCES


def flat_weights(student):
    return torch.cat([parameter.flatten() for parameter in student.network.parameters()])


@pytest.mark.parametrize("option", ["method", "weight", "distance"])
@pytest.mark.parametrize("name", ["own_functions:absent", "absent_module:function", "own_functions:number", "absent"])
def test_a_wrong_name_is_one_line_before_the_run_begins(option, name, tiny_teacher, own_module, error_line, tmp_path):
    line = error_line("distill", "--teacher", tiny_teacher, "--out", tmp_path / "run", f"--{option}", name)
    assert f"--{option} {name}" in line
    assert not (tmp_path / "run").exists()


FAULTS = {
    "method returns_a_number": "returned an object of type int, expected an Objective",
    "method takes_two": "takes_two() takes 2 positional arguments but 3 were given",
    "method another_critic": "no network has the update 'critic' of its critics, expected 'fake'",
    "method term_per_sample": "the term 'loss_own' returned shape (10,), expected a scalar tensor, such as a mean",
    "weight weight_of_a_number": "the weight returned an object of type float, expected a tensor",
    "weight weight_of_three": "the weight has shape (3,), expected (5,), one per sample",
    "method method_that_raises": "ValueError: invalid literal for int() with base 10: 'a' (",
    "distance distance_that_raises": "ValueError: invalid literal for int() with base 10: 'a' (",
    "distance distance_of_a_number": "the distance returned an object of type float, expected a tensor",
    "distance distance_that_fails": "AttributeError: 'Tensor' object has no attribute 'absent' (",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_ones_own_function_is_one_line(fault, tiny_teacher, own_module, error_line, tmp_path):
    """Without a traceback, and what could be tried before the pairs were made was."""
    option, name = fault.split()
    flags = ["--preset", "_small", "--steps", "2", "--batch", "5", "--pair-count", "5", "--solver-steps", "1", *MACHINE]
    given = ["--teacher", tiny_teacher, "--out", tmp_path / "run", *flags, f"--{option}", f"own_functions:{name}"]
    assert FAULTS[fault] in error_line("distill", *given)
    assert (tmp_path / "run" / "pairs").exists() == (name.startswith(("weight", "distance", "term")))


def test_an_objective_without_critics_is_said_to_train_no_fake_score(settings, own_module, capsys):
    distill(settings(method="own_functions:no_critic", report_images=0))
    assert "--method own_functions:no_critic has no critics: the fake score stays" in capsys.readouterr().out
