"""A sharded distillation whose processes read or offload their shards is, bit for bit, one that does not."""

import pytest
import torch

from dmdistill.commands.distill import command
from dmdistill.commands.options import change
from helpers.method_runs import method_run
from helpers.process_group_tests import together
from helpers.runs import logged_values, student_bytes, weights

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


@pytest.mark.parametrize("kind", KINDS)
def test_reading_shards_changes_nothing(kind, tiny_teacher, class_pictures, tmp_path):
    """Losses, weights, moments, averages and the student's file."""
    name, options = KINDS[kind]
    if "lora_fake" in options:
        pytest.importorskip("peft")
    config = method_run(name, tiny_teacher, class_pictures, tmp_path / "read", steps=2, strategy="fsdp", **options)
    whole = change(config, out=tmp_path / "whole", offload_teacher=False)
    processes = 4 if config.memory.sharding_group else 2
    assert [places for places, _ in together(processes, run, config)] == [["meta"]] * processes
    together(processes, run_whole, whole)
    assert logged_values(config.out) == logged_values(whole.out)
    assert torch.equal(weights(config.out, 2), weights(whole.out, 2))
    assert student_bytes(config.out) == student_bytes(whole.out)
