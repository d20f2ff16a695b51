"""A sharded distillation whose processes read or offload their shards is, bit for bit, one that does not."""

from itertools import product

import pytest
import torch

from dmdistill.commands.distill import command
from dmdistill.commands.options import change
from helpers.edits import edit_json
from helpers.method_runs import method_run
from helpers.process_group_tests import together
from helpers.runs import logged_values, student_bytes, weights
from helpers.tiny_models import save_student

KINDS = {
    "pairs of its own": ("dmd2", {"method": "dmd", "pair_count": 8, "batch_reg": 4, "solver_steps": 2}),
    "a discriminator in the fake score": ("dmd2-gan", {}),
    "a discriminator on the teacher, and adapters": ("dmd2-on-teacher", {"lora_student": 2, "lora_fake": 2}),
    "hybrid sharding": ("dmd2-gan", {"sharding_group": 2}),
    "an offloaded teacher, on which the discriminator stands": ("dmd2-on-teacher", {"offload_teacher": True}),
}


def run_whole(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "reads_shards", lambda *_: False)
        command.distill(config)


def run(config):
    """Returns which device the teacher's weights were on before they were sharded."""
    places, set_up = [], command.set_up

    def note(config, teacher, *words, **named):
        places.append(teacher.device.type)
        return set_up(config, teacher, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "set_up", note)
        command.distill(config)
    return places


def check_same_run(config, whole):
    """Losses, weights, moments, averages and the student's file are those of a run that loads its networks whole."""
    processes = 4 if config.memory.sharding_group else 2
    assert [places for places, _ in together(processes, run, config)] == [["meta"]] * processes
    together(processes, run_whole, whole)
    assert logged_values(config.out) == logged_values(whole.out)
    assert torch.equal(weights(config.out, 2), weights(whole.out, 2))
    assert student_bytes(config.out) == student_bytes(whole.out)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_shards_changes_nothing(kind, tiny_teacher, class_pictures, tmp_path):
    name, options = KINDS[kind]
    if "lora_fake" in options:
        pytest.importorskip("peft")
    config = method_run(name, tiny_teacher, class_pictures, tmp_path / "read", steps=2, strategy="fsdp", **options)
    whole = change(config, out=tmp_path / "whole", offload_teacher=False)
    check_same_run(config, whole)


STARTS = {  # the rank of the student's adapters, options
    "all weights": (0, {}),
    "all weights, in groups": (0, {"sharding_group": 2}),
    "adapters, which are merged": (2, {}),
    "adapters, trained further": (2, {"lora_student": 2}),
}
FAST = {
    ("all weights", "edm"),
    ("all weights", "pipeline"),
    ("adapters, which are merged", "edm"),
    ("adapters, trained further", "pipeline"),
}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in product(STARTS, ["edm", "pipeline"])
]


@pytest.mark.parametrize(("kind", "teacher"), CASES)
def test_a_student_to_start_from_is_read_in_shards_too(kind, teacher, tiny_teacher, tiny_pipeline, tmp_path):
    """Its file and the teacher's are others, and so would be the losses."""
    rank, options = STARTS[kind]
    pytest.importorskip("peft")
    name = str(tiny_pipeline("stable_diffusion") if teacher == "pipeline" else tiny_teacher)
    start = tmp_path / "start"
    save_student(name, start, rank=rank)
    if options.get("lora_student"):
        edit_json(start / "config.json", lora={"rank": rank, "alpha": rank})  # as this run's adapters
    if teacher == "pipeline":
        (tmp_path / "prompts.txt").write_text("a red square\na blue circle\n")
        options = {"prompts": str(tmp_path / "prompts.txt"), **options}
    config = method_run("dmd2", name, None, tmp_path / "read", steps=2, strategy="fsdp", start=str(start), **options)
    whole = change(config, out=tmp_path / "whole")
    check_same_run(config, whole)
