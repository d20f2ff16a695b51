"""Networks whose processes read their own shards of the weights from safetensors."""

import numpy as np
import pytest

from dmdistill.models.load import load_teacher
from helpers.configs import small_distillation
from helpers.process_group_tests import together
from helpers.shard_reading import build_networks


@pytest.mark.parametrize(("processes", "ranks", "kind"), [(2, (0, 0), "own"), (4, (2, 2), "own"), (2, (2, 0), "flux")])
def test_shards_are_those_of_whole_networks_and_nothing_else_is_read(
    processes, ranks, kind, tiny_teacher, tiny_pipeline
):
    """Bit for bit, buffers and adapters too. A process reads its shards and no more, and holds no weight before."""
    if any(ranks):
        pytest.importorskip("peft")
    name = str(tiny_teacher if kind == "own" else tiny_pipeline(kind))
    config = small_distillation(teacher=name, lora_student=ranks[0], lora_fake=ranks[1])
    size = sum(parameter.nbytes for parameter in load_teacher(name).network.parameters())
    read = [result for result, _ in together(processes, build_networks, name, config, True)]
    whole = [result for result, _ in together(processes, build_networks, name, config, False)]
    for (shards, reads, real), (expected, none, full) in zip(read, whole, strict=True):
        assert shards.keys() == expected.keys()
        assert all(np.array_equal(shards[name], expected[name]) for name in shards)
        assert none == []
        assert full - real == size * (1 + (ranks[0] == 0) + (ranks[1] == 0))  # adapters share the teacher's
        assert real == 0 or any(ranks)
        assert max(count for _, count in reads) <= size / processes
    networks = 1 + 2 * (ranks[0] == 0) + (ranks[1] == 0)  # teacher; generator and average; fake score
    assert sum(count for _, reads, _ in read for _, count in reads) == networks * size
