"""Teachers of one's own: what is wrong with one is said in one line, with the place in the user's code."""

import sys

import pytest
import torch

from dmdistill.models import python_function
from dmdistill.models.load import load_teacher

MODULE = """
import torch
from torch import nn

from dmdistill import Flow, FlowDenoiser, LabelSpace, Teacher


class Net(nn.Module):
    def __init__(self, channels=1, classes=0, out=None, scale=1.0):
        super().__init__()
        self.conv = nn.Conv2d(channels, out or channels, 3, padding=1)
        self.embed = nn.Linear(classes, channels) if classes else None
        self.scale = scale

    def forward(self, x, t, cond=None):
        if self.embed is not None:
            x = x + self.embed(cond.one_hot)[:, :, None, None]  # line 17
        return self.scale * self.conv(x)  # line 18


class WithoutCondition(nn.Conv2d):
    def forward(self, x, t):
        return super().forward(x)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x, t, cond=None):
        return self.norm(x)


class Bare(nn.Module):
    def forward(self, x, t, cond=None):
        return 0.5 * x


class Pair(Net):
    def forward(self, x, t, cond=None):
        return super().forward(x, t), t


def make(network, shape=(1, 8, 8), **named):
    return Teacher(name="own", denoiser=FlowDenoiser(network, Flow()), shape=shape, **{"solver": "ddim"} | named)


"""
CALLED = "its network, called with x_t of 2 x 1 x 8 x 8, t of 2 and cond None,"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the teacher that an expression makes, by a module of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(expression):
        module = f"own{abs(hash((expression, str(tmp_path))))}"
        (tmp_path / f"{module}.py").write_text(f"{MODULE}def teacher() -> Teacher:\n    return {expression}\n")
        return load_teacher(f"{module}:teacher")

    return write


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("make(Net(3))", f"{CALLED} fails with RuntimeError: .* 3 channels.*py, line 18\\)$"),
        ("make(Net(3), (8, 8, 3))", "called with x_t of 2 x 8 x 8 x 3, .*but got 8 channels"),
        ("make(Net(1, 3))", f"{CALLED} fails with AttributeError: 'NoneType' .*py, line 17\\);"),
        ("make(Net(1, 3))", r"; if it takes classes, give the Teacher conditions=LabelSpace\(names\)$"),
        (
            "make(Net(1, 3), conditions=LabelSpace(('a', 'b')))",
            "t of 2 and the labels of 2 classes, fails with RuntimeError: .*py, line 17\\)$",
        ),
        ("make(WithoutCondition(1, 1, 1))", f"{CALLED} fails with TypeError: .*forward\\(\\) takes 3 positional"),
        ("make(Net(1, out=6))", f"{CALLED} gives images of 2 x 6 x 8 x 8, expected 2 x 1 x 8 x 8"),
        (
            "make(Net(3, out=6), (3, 8, 8))",
            f"{CALLED.replace('2 x 1', '2 x 3')} gives 2 x 6 x 8 x 8, expected 2 x 3 x 8 x 8$",
        ),
        ("make(Net(1, scale=float('nan')))", f"{CALLED} gives NaN or infinity"),
        ("make(Net(), steps=0)", "0 solver steps, expected 1 or more"),
        ("make(Bare())", "its network has no parameters, a student would have nothing to train"),
        ("make(Pair())", f"{CALLED} returns a tuple, expected a tensor of 2 x 1 x 8 x 8"),
        ("make(Net(), solver='euler')", "solver 'euler', expected one of heun, dpmpp, ddim, pndm"),
        ("make(Net(), solver='dpm++')", "solver 'dpm\\+\\+', .*; did you mean 'dpmpp'?"),
        (
            "Teacher(name='own', denoiser=Net(), shape=(1, 8, 8))",
            "its denoiser is a Net, expected one of dmdistill's around it, such as FlowDenoiser",
        ),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*py, line \d+\)$"),
    ],
)
def test_what_is_wrong_is_one_line(expression, message, load):
    with pytest.raises(ValueError, match=message) as caught:
        load(expression)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("teacher own")


def test_trying_a_network_draws_none_of_the_user_s_random_numbers(load, monkeypatch):
    states = []
    for most in (python_function.LARGEST_TRIED, -1):
        monkeypatch.setattr(python_function, "LARGEST_TRIED", most)
        torch.manual_seed(3)
        load(f"make(Net(1, 2), steps={5 + most % 7}, conditions=LabelSpace(('a', 'b')))")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_trying_a_network_leaves_its_statistics(load):
    """Those of a batch norm, which training mode would update by noise."""
    norm = load("make(Normed())").network.norm
    assert (norm.num_batches_tracked.item(), norm.running_mean.item(), norm.running_var.item()) == (0, 0, 1)


def test_a_huge_network_is_not_tried(load, monkeypatch):
    monkeypatch.setattr(python_function, "LARGEST_TRIED", 5)
    assert load("make(Net(3))").num_parameters == 84


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own:teach", "teacher own:teach: own has no 'teach'; did you mean 'teacher'\\?$"),
        ("own:torch", "teacher own:torch: it is a module, expected a function$"),
        ("own:nothing", "teacher own:nothing: own has no 'nothing'$"),
    ],
)
def test_a_function_that_is_not_there_has_a_hint(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text("import torch\n\ndef teacher() -> 'Teacher': ...\n")
    with pytest.raises(ValueError, match=message):
        load_teacher(name)
    sys.modules.pop("own", None)
