"""Each method in two processes, with replicated and with sharded networks, is the method in one process."""

import pickle

import pytest
import torch

from dmdistill.commands.distill.command import distill
from dmdistill.commands.options import change
from dmdistill.models.load import load_model
from helpers.method_runs import RUNS, method_run
from helpers.process_group_tests import together
from helpers.runs import assert_equal_to_rounding
from helpers.torchrun import KILLED, torchrun

BLOCK = "enc.4x4_block0"  # of the tiny teacher
FURTHER = {
    "layers within a block": ("dmd2-gan", {"discriminator_layers": (f"{BLOCK}.norm1", f"{BLOCK}.conv1")}),
    "layers within a block of the teacher": ("f-distill", {"discriminator_layers": (f"{BLOCK}.norm1", BLOCK)}),
    "microbatches": ("dmd2-on-teacher", {"accumulate": 2}),
    "checkpointing": ("f-distill", {"checkpointing": "blocks"}),
    "adapters beside a teacher that is judged": ("dmd2-on-teacher", {"lora_student": 2, "lora_fake": 2}),
}
QUICK = {("f-distill", "fsdp"), ("dmd2-gan", "ddp")}
CASES = [
    pytest.param(
        strategy, name, {}, id=f"{name} {strategy}", marks=[] if (name, strategy) in QUICK else pytest.mark.slow
    )
    for name in RUNS
    for strategy in ("ddp", "fsdp")
]
CASES += [
    pytest.param("fsdp", name, options, id=words, marks=pytest.mark.slow) for words, (name, options) in FURTHER.items()
]


def run(config):
    distill(config)


def assert_same_distillation(config, single, steps):
    """Every logged value, the weights, averages and moments, and the student."""
    assert_equal_to_rounding(config.out, single.out, step=steps)
    mine, theirs = (load_model(str(one.out)).network.state_dict() for one in (config, single))
    torch.testing.assert_close(dict(mine), dict(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("strategy", "name", "options"), CASES)
def test_a_method_learns_the_same_in_two_processes(strategy, name, options, tiny_teacher, class_pictures, tmp_path):
    """The real images, the student's step and the means of f-distill and SiDA are those of the full batch."""
    steps = 2 if (name, strategy) in QUICK and not options else 4
    if "lora_fake" in options:
        pytest.importorskip("peft")
    single = method_run(name, tiny_teacher, class_pictures, tmp_path / "one", steps=steps, **options)
    config = change(single, out=tmp_path / "two", strategy=strategy)
    run(single)
    together(2, run, config)
    assert_same_distillation(config, single, steps)


def test_a_fake_score_that_learns_augmentations_and_moves_towards_the_generator(augmented_teacher, tmp_path):
    """It trains a layer that the generator, which is given no labels, leaves as it is."""
    single = method_run("sid", augmented_teacher, None, tmp_path / "one", steps=3, augment_fake=0.5, ida=0.1)
    run(single)
    together(2, run, config := change(single, out=tmp_path / "two"))
    assert_same_distillation(config, single, 3)
    state = torch.load(config.out / "checkpoints" / "step-00000003.pt", weights_only=True)
    layers = {name: any("map_augment" in key for key in one["network"]) for name, one in state["updates"].items()}
    assert layers == {"generator": False, "fake": True}


@pytest.mark.slow  # torchrun and its processes import torch five times
@pytest.mark.parametrize("name", ["dmd2-gan", "dmd2-on-teacher"])
def test_a_sharded_gan_whose_process_was_killed_is_resumed(name, tiny_teacher, class_pictures, tmp_path):
    """From a checkpoint with a discriminator, in the fake score or of its own, to the same student."""
    run(single := method_run(name, tiny_teacher, class_pictures, tmp_path / "one"))
    config = change(single, out=tmp_path / "two", strategy="fsdp")
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    done = torchrun(tmp_path / "killed.py", 2, tmp_path / "config", restarts=1)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "dmdistill" in line or "rror" in line]
    assert_same_distillation(config, single, 4)
