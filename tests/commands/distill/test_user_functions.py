"""A method, a weight and a distance of the user's own, from a file in the current folder."""

import sys

import pytest

from dmdistill.commands.distill.command import distill
from dmdistill.commands.options import change
from helpers.runs import student_bytes

SOURCE = """
from dmdistill.core.losses import pseudo_huber
from dmdistill.core.methods import dmd

def method(generator, real, fake):
    return dmd(generator, real, fake, lambda_reg=1.0, match_pairs=True)

def weight(at):
    return at.alpha * at.sigma  # sigma3: what multiplies the difference of the means

def distance(x, y):
    return 2 * pseudo_huber(x, y)

number = 3
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


@pytest.mark.parametrize("option", ["method", "weight", "distance"])
@pytest.mark.parametrize("name", ["own_functions:absent", "absent_module:function", "own_functions:number", "absent"])
def test_a_wrong_name_is_one_line_before_the_run_begins(option, name, tiny_teacher, own_module, error_line, tmp_path):
    line = error_line("distill", "--teacher", tiny_teacher, "--out", tmp_path / "run", f"--{option}", name)
    assert f"--{option} {name}" in line
    assert not (tmp_path / "run").exists()
