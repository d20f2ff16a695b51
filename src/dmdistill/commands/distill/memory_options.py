"""Options for memory and for processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmdistill.commands.options import require_at_least

__all__ = ["MemoryOptions"]


@dataclass(frozen=True)
class MemoryOptions:
    """Options that save memory at the cost of time, and how processes share the work."""

    accumulate: int = 1
    """Gradient-accumulation steps: microbatches that a process computes one after the other for one update."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How processes hold networks: ddp replicates them, fsdp (FSDP2) shards each weight; a process reads its shards."""
    sharding_group: int = 0
    """Processes among which fsdp shards networks, such as those of a host: each such group has a replica (hybrid
    sharding, HSDP). 0 shards among all processes."""
    offload_teacher: bool = False
    """Keep the teacher's shards in the host's memory (CPU offload), from which its blocks are copied for each use."""
    lora_student: int = 0
    """Rank of the student's LoRA adapters; 0 trains all its weights."""
    lora_fake: int = 0
    """Rank of the fake score's LoRA adapters; 0 trains all its weights."""
    checkpointing: Literal["auto", "none", "norms", "blocks"] = "auto"
    """Activation checkpointing: norms halves the memory of our U-Nets; blocks saves most, for a third more time; auto
    is none on a CPU, where norms takes a sixth more time, and norms on a GPU."""
    compile: bool = False
    """Compile the networks by torch.compile: minutes at the start, then faster steps; losses change by rounding."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "accumulate")
        require_at_least(self, 0, "lora_student", "lora_fake", "sharding_group")
        sharding = {"--sharding-group": self.sharding_group, "--offload-teacher": self.offload_teacher}
        if self.strategy != "fsdp" and (given := [flag for flag, value in sharding.items() if value]):
            raise ValueError(f"{given[0]} with --strategy {self.strategy}, expected --strategy fsdp with it")
        if self.offload_teacher and (self.lora_student or self.lora_fake):
            raise ValueError(
                "--offload-teacher with adapters, which stand on the teacher's own weights: leave out "
                "--offload-teacher, or --lora-student and --lora-fake"
            )
