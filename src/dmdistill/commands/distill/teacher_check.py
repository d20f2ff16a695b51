"""The teacher of a run stays the same: its fingerprint is part of every checkpoint."""

from __future__ import annotations

from typing import Any

from dmdistill.models.model import Teacher

__all__ = ["TeacherCheck"]


class TeacherCheck:
    """Compares the teacher of a resumed run with that of its checkpoints, by its fingerprint and its guidance.

    Args:
        teacher: the teacher.
        fingerprint: its fingerprint.
    """

    def __init__(self, teacher: Teacher, fingerprint: str) -> None:
        self.name, self.identity = teacher.name, f"{fingerprint} at guidance {teacher.guidance:g}"

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the teacher."""
        return {"identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise a ValueError where the run began with another teacher."""
        if state["identity"] != self.identity:
            raise ValueError(
                f"--resume: the run began with the teacher {state['identity']}, {self.name} is now {self.identity}: "
                "give back the first one, or start a new run"
            )
