"""What a run's folder holds at the moment, as its page shows it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from dmdistill.commands.distill.pictures import curves_figure
from dmdistill.commands.info.run_status import describe_run
from dmdistill.training.metrics_log import read_metrics

__all__ = ["RunView", "Status"]

FILES = ("config.toml", "metrics.jsonl", "report.json")
FRAMES = 40  # of the film: every grid of a run that has no more
SIDE = 464  # pixels of the film's longer side, at most
MILLISECONDS, LAST_MILLISECONDS = 250, 2000  # that a frame and the last one are shown


@dataclass(frozen=True)
class Status:
    """Progress, health verdict and all figures of a run, in words."""

    progress: str
    verdict: str
    rows: dict[str, str]


class RunView:
    """The state of a run, read anew at each call; the run may be training.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = TemporaryDirectory(prefix="dmdistill-ui-")

    def version(self) -> list[Any]:
        """Return the number of sample grids, and what else changes when the run writes what the page shows."""
        stats = [path.stat() for path in map(self.folder.joinpath, FILES) if path.is_file()]
        return [len(self.grids()), *([one.st_size, one.st_mtime_ns] for one in stats)]

    def status(self) -> Status:
        """Return the progress, the verdict and all figures; what is wrong with the files where they are damaged."""
        try:
            log = read_metrics(self.folder)
            if not log:
                return Status("no step is logged yet", "too early to tell", {})
            rows = describe_run(self.folder, log)
        except ValueError as error:
            return Status("unknown", str(error), {})
        left = f"left: {rows['left']}" if "left" in rows else "all steps are done"
        return Status(f"step {rows['step']} after {rows['training']}; {left}", rows["verdict"], rows)

    def curves(self) -> Image.Image | None:
        """Draw the curves of the log; None without any."""
        try:
            log = read_metrics(self.folder)
        except ValueError:
            return None
        if not log:
            return None
        file = io.BytesIO()
        curves_figure(log).savefig(file, format="png", dpi=90)
        return Image.open(file)

    def grids(self) -> list[Path]:
        """Return the sample grids, in the order of their steps."""
        return sorted(self.folder.glob("samples/step-*.png"), key=lambda file: (len(file.name), file.name))

    def film(self) -> str | None:
        """Write the sample grids as an animation, and return its file; None without any."""
        grids = self.grids()
        if not grids:
            return None
        last = len(grids) - 1
        count = min(FRAMES, len(grids))
        frames = [read_frame(grids[round(i * last / max(count - 1, 1))]) for i in range(count)]
        file = Path(self.temporary.name) / f"film-{len(grids)}.gif"
        if file.exists():
            return str(file)
        durations = [*[MILLISECONDS] * (count - 1), LAST_MILLISECONDS]
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return str(file)


def read_frame(file: Path) -> Image.Image:
    """Read a sample grid, reduced to the size of the film."""
    with Image.open(file) as image:
        image.thumbnail((SIDE, SIDE))
        return image.copy()
