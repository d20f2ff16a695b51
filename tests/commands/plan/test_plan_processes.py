"""Memory that is planned for one of several processes, beside the tensors alive in real DDP and FSDP2."""

from functools import partial

import pytest
import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions, change
from dmdistill.commands.plan.dry_run import rehearsal
from dmdistill.models.load import load_teacher
from helpers import locked_folder as held
from helpers.configs import configure
from helpers.process_group_tests import together


def settings(processes, **changes):
    """Two images and a pair for each process and part: weights outweigh activations."""
    images = 2 * processes * changes.get("accumulate", 1)
    plain = {"pair_count": images, "steps": 6, "batch": images, "batch_reg": images // 2, "halflives": (2.0,)}
    return configure(
        DistillConfig, **plain | changes, compute=ComputeOptions(device="cpu", precision="fp32", threads=1)
    )


def planned(config, teacher, processes):
    """(memory by part in the last phase, bytes of whole networks before)."""
    own = change(config, batch=config.batch // processes, batch_reg=config.batch_reg // processes)
    with rehearsal(own, teacher, data=False, processes=processes) as job:
        return job.count(job.course.phases[-1]).memory, job.host


def compared(processes, make, **changes):
    """What is planned and what the first process holds, which has most."""
    config = settings(processes, **changes)
    memory, host = planned(config, make(), processes)
    (most, built, stays), *others = [answer for answer, _ in together(processes, held.held, config, make)]
    assert most >= max(one[0] for one in others)
    return (sum(memory.values()), host, {part: memory[part] for part in stays}), (most, built, stays)


@pytest.mark.parametrize(
    ("processes", "precision", "changes"),
    [(2, None, {}), (4, None, {"accumulate": 2}), (2, torch.bfloat16, {"checkpointing": "blocks"})],
)
def test_a_process_of_fsdp_holds_what_was_planned(processes, precision, changes):
    """Shares to the byte; the peak, gathered blocks and whole gradients in it, to 3 per cent; the start to a block."""
    make = partial(held.layered, precision)
    (planned, before, shares), (most, built, stays) = compared(processes, make, strategy="fsdp", **changes)
    assert shares == stays
    assert planned == pytest.approx(most, rel=0.03)
    first, block = shares["fake score"], 4 * 2 * 101 * 1203  # on the CPU the first shares lie there too
    assert before + first <= built < before + first + 1.6 * block


def test_sharded_networks_share_no_frozen_weights(tiny_teacher):
    """Each of the teacher, the student with adapters, its average and the fake score has shares of its own."""
    pytest.importorskip("peft")
    make = partial(load_teacher, str(tiny_teacher))
    (planned, before, shares), (most, _, stays) = compared(2, make, strategy="fsdp", lora_student=2, lora_fake=2)
    assert shares == stays
    whole = sum(one.nbytes for one in make().denoiser.parameters())
    assert whole < before < 1.2 * whole  # what is frozen is there once
    assert planned == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_process_of_ddp_holds_buckets_of_both_networks(parts):
    """And, of the parts before the last, gradients outside of them."""
    (planned, before, weights), (most, _, stays) = compared(2, held.layered, accumulate=parts)
    assert before == 0
    assert weights == stays
    assert planned == pytest.approx(most, rel=1e-3)
