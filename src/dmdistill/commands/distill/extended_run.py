"""A run that is resumed with other --steps: what has begun stays where it began."""

from __future__ import annotations

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_run

__all__ = ["describe_extension", "keep_phases"]


def keep_phases(config: DistillConfig) -> DistillConfig:
    """Return the configuration of a run with the phases at the steps where it began with them.

    The phases of DMD are fractions of the run; those of the other methods are given by their first steps, which stay.
    A run that is new, that is resumed with the same steps, or whose --phase-steps is given, is returned as it is.
    """
    if config.method != "dmd" or config.matching.phase_steps or not is_resumed(config):
        return config
    before = steps_before(config)
    return config if before == config.steps else change(config, phase_steps=before)


def describe_extension(config: DistillConfig) -> str:
    """Say in a line what other --steps of a resumed run change, and what not; "" where there is nothing to say."""
    before = steps_before(config) if is_resumed(config) else config.steps
    if before == config.steps:
        return ""
    phases = [f"{phase.name} from step {phase.first}" for phase in PhaseSchedule(config).phases]
    parts = [f"phases stay where they are: {'; '.join(phases)}"] if len(phases) > 1 else []
    if config.optimizer.lr_decay:
        parts.append(f"--lr-decay: the learning rates fall to 0 at step {config.steps}, before at step {before}")
    return ". ".join(parts)


def is_resumed(config: DistillConfig) -> bool:
    """Return whether there is a run to resume."""
    return config.resume is not None and (config.resume / "config.toml").is_file()


def steps_before(config: DistillConfig) -> int:
    """Return the --steps that a run to resume had last."""
    assert config.resume is not None
    return from_run(DistillConfig, config.resume).steps
