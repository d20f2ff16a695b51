"""The planned memory of one of several processes equals that of the tensors alive in real DDP and FSDP2."""

from functools import partial

import pytest
import torch

from dmdistill.commands.options import change
from dmdistill.commands.plan.dry_run import dry_run
from dmdistill.models.load import load_teacher
from helpers.configs import small_distillation
from helpers.process_group_tests import together
from helpers.process_memory import layered_teacher, measure_memory


def settings(processes, **changes):
    """Two images and a pair for each process and microbatch: weights outweigh activations."""
    images = 2 * processes * changes.get("accumulate", 1)
    sizes = {"pair_count": images, "batch": images, "batch_reg": images // 2, "ema_halflives": (2.0,)}
    return small_distillation(**sizes | changes)


def planned_memory(config, teacher, processes):
    """(memory by part in the last phase, bytes of unsharded networks before)."""
    own = change(config, batch=config.batch // processes, batch_reg=config.regression.batch_reg // processes)
    compute = {"device": torch.device("cpu"), "precision": teacher.denoiser.precision}
    with dry_run(own, teacher, data=False, processes=processes, **compute) as run:
        return run.count(run.distillation.phases.phases[-1]).memory, run.host_bytes


def compare(processes, load, **changes):
    """The planned and the measured memory of the first process, which has most: peak, before sharding, by part."""
    config = settings(processes, **changes)
    memory, host = planned_memory(config, load(), processes)
    (peak, built, parts), *others = [result for result, _ in together(processes, measure_memory, config, load)]
    assert peak >= max(one[0] for one in others)
    return (sum(memory.values()), host, {part: memory[part] for part in parts}), (peak, built, parts)


@pytest.mark.parametrize(
    ("processes", "precision", "changes"),
    [
        (2, None, {}),
        (4, None, {"accumulate": 2}),
        (4, None, {"sharding_group": 2}),
        (2, torch.bfloat16, {"checkpointing": "blocks"}),
    ],
)
def test_a_process_of_fsdp_needs_the_planned_memory(processes, precision, changes):
    """Shards to the byte; the peak, with gathered blocks and unsharded gradients, to 3 %; the start to a block."""
    load = partial(layered_teacher, precision)
    (planned, before, shards), (peak, built, parts) = compare(processes, load, strategy="fsdp", **changes)
    assert shards == parts
    assert planned == pytest.approx(peak, rel=0.03)
    first, block = shards["fake score"], 4 * 2 * 101 * 1203  # on the CPU the first shards lie there too
    assert before + first <= built < before + first + 1.6 * block


def test_a_process_that_is_a_sharding_group_of_its_own_holds_whole_networks():
    """Without DDP's buckets; a gathered block that FSDP2 does not copy then is counted, too."""
    (planned, _, shards), (peak, _, parts) = compare(2, layered_teacher, strategy="fsdp", sharding_group=1)
    assert shards == parts
    assert planned == pytest.approx(peak, rel=0.04)


def test_sharded_networks_share_their_frozen_weights(tiny_teacher):
    """The student with adapters, its EMA and the fake score have the teacher's shards."""
    pytest.importorskip("peft")
    load = partial(load_teacher, str(tiny_teacher))
    (planned, before, shards), (peak, _, parts) = compare(2, load, strategy="fsdp", lora_student=2, lora_fake=2)
    full = sum(one.nbytes for one in load().denoiser.parameters())
    assert full < before < 1.2 * full  # what is frozen is there once
    assert shards == parts
    assert planned == pytest.approx(peak, rel=0.06)  # of weights of an odd number of rows FSDP2 keeps padded copies


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_process_of_ddp_holds_buckets_of_both_networks(microbatches):
    """And, of the microbatches before the last, gradients outside of them."""
    (planned, before, weights), (peak, _, parts) = compare(2, layered_teacher, accumulate=microbatches)
    assert before == 0
    assert weights == parts
    assert planned == pytest.approx(peak, rel=1e-3)
