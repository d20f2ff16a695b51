"""`dmdistill reproduce ablation | weighting`: the paper's tables 2 and 3 on the bundled teacher, at equal compute.

Each row is the same distillation with a setting or two changed, repeated with several seeds, and given as many network
evaluations as the full objective takes in its number of steps: a backward pass counts as two. Students that are
finished stay, so an experiment that was interrupted goes on when it is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import start_of
from dmdistill.commands.evaluate.generated_images import generate_images
from dmdistill.commands.options import SolverOptions
from dmdistill.commands.pairs.command import make_teacher_pairs, with_solver_options
from dmdistill.commands.presets import flag_of, from_preset, with_run
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.tables import over_seeds, print_rows
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.pairs import PairDataset
from dmdistill.io.atomic import atomic_write, write_json
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.frechet import frechet_distance, gather
from dmdistill.metrics.precision_recall import precision_recall
from dmdistill.models.load import load_model, load_teacher

__all__ = ["ABLATION", "WEIGHTING", "ablation", "evaluations_per_step", "weighting"]

Rows = Mapping[str, Mapping[str, Any]]
"""Name of a row -> the settings in which it differs from the full objective."""

ABLATION: Rows = {  # table 2 of the paper, and DMD2's answer to its last row
    "full": {},
    "no-matching": {"match": False},
    "no-regression": {"lambda_reg": 0.0},
    "no-regression-5-to-1": {"lambda_reg": 0.0, "fake_steps": 5},
}
WEIGHTING: Rows = {"eq8": {}, "sigma": {"weight": "sigma"}, "sigma3": {"weight": "sigma3"}}  # table 3

REFERENCE = 2000  # images of the teacher, apart from the pairs, for precision and recall
IMAGES = 5000  # of a student


def ablation(config: ReproduceConfig) -> dict[str, Any]:
    """Table 2: the full objective, without either half, and without regression at DMD2's 5:1."""
    return Experiment(config).run(ABLATION)


def weighting(config: ReproduceConfig) -> dict[str, Any]:
    """Table 3: the weight of the gradient, Eq. 8, sigma/alpha and sigma^3/alpha."""
    return Experiment(config).run(WEIGHTING)


def evaluations_per_step(config: DistillConfig) -> int:
    """Of a network, for one update of the generator: a forward pass counts 1 per image, a backward pass 2."""
    guided = config.ode.guidance not in (None, 1)
    regression = 3 * config.batch_reg if config.lambda_reg else 0
    if not config.match:
        return regression
    generator, real, fake = 3, 2 if guided else 1, 1
    learning = 3 + 4 * (config.fake_steps - 1)  # each further update of mu_fake draws images of its own
    return config.batch * (generator + real + fake + learning) + regression


class Experiment:
    """Distillations of one teacher, by rows and seeds, from the same pairs, and what their students are worth."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config, self.out = config, config.out
        self.device, self.precision = setup_compute(config.compute)
        ode = SolverOptions(guidance=config.guidance)
        changes: dict[str, Any] = {"ode": ode, "machine": config.compute, "start": config.start}
        changes |= {} if config.steps is None else {"steps": config.steps}
        self.full = from_preset(DistillConfig, "fashion-ablation", pairs=self.out / "pairs", **changes)
        self.teacher = with_solver_options(load_teacher(self.full.teacher), ode)
        start_of(self.full, self.teacher)  # a --start that cannot be says so before pairs are made
        self.teacher.to(self.device, self.precision)
        self.feature_extractor = load_classifier_features(str(self.teacher.feature_extractor), self.device)

    def run(self, rows: Rows) -> dict[str, Any]:
        """Distill what is missing, measure, write the table and its picture, print and return it."""
        pairs = self.pairs("pairs", self.full.pair_count, seed=0)
        reference = self.pairs("reference", REFERENCE, seed=1)
        self.reference = self.features(batches(reference))
        taught = self.frechet(torch.cat([self.features(batches(pairs)), self.reference]))
        found = [
            {"row": "the teacher", "steps": "", **over_seeds([{"frechet": taught, "precision": None, "recall": None}])}
        ]
        for name, changes in rows.items():
            settings = self.settings(changes)
            seeds = self.config.seeds if settings.match else 1  # regression alone draws nothing: all seeds are one run
            measured = [self.student(settings, seed, self.out / name) for seed in range(seeds)]
            found.append({"row": name.replace("-", " "), "steps": settings.steps, **over_seeds(measured)})
        table = {"table": self.config.what, "seeds": self.config.seeds, "settings": asdict(self.full), "rows": found}
        picture = self.out / f"{self.config.what}.png"
        draw_rows(picture, found)
        write_json(picture.with_suffix(".json"), table)
        print_rows(found, picture)
        return table

    def settings(self, changes: Mapping[str, Any]) -> DistillConfig:
        """Of a row, with as many steps as the network evaluations of the full objective allow."""
        row = replace(self.full, **changes)
        steps = max(1, round(self.full.steps * evaluations_per_step(self.full) / evaluations_per_step(row)))
        return replace(row, steps=steps, evaluate_every=steps, sample_every=steps)

    def student(self, settings: DistillConfig, seed: int, row: Path) -> dict[str, float]:
        """The figures of the student of one seed, which is distilled unless it is there."""
        folder = row / f"seed-{seed}"
        wanted = replace(settings, out=folder, seed=seed)
        if begun := (folder / "config.toml").exists():
            wanted = replace(wanted, resume=folder)
            check_same(with_run(DistillConfig(), folder), wanted)
        if not (begun and (folder / "student").exists()) and distill(wanted) is None:
            raise KeyboardInterrupt
        student = load_model(str(folder / "student"))
        student.to(self.device, self.precision)
        features = self.features(generate_images(student, IMAGES, batch=500, seed=1))
        precision, recall = precision_recall(features[:REFERENCE], self.reference)
        return {"frechet": self.frechet(features), "precision": precision, "recall": recall}

    def pairs(self, name: str, count: int, *, seed: int) -> PairDataset:
        return make_teacher_pairs(self.teacher, self.out / name, count=count, seed=seed)

    def features(self, images: Iterable[Tensor]) -> Tensor:
        """The judge's, of images batch by batch: N D."""
        with torch.no_grad():
            return torch.cat([self.feature_extractor.features(batch.to(self.device)) for batch in images])

    def frechet(self, features: Tensor) -> float:
        """Distance of a set to the real images."""
        return frechet_distance(gather(lambda rows: rows, [features]), self.feature_extractor.reference)


def check_same(found: DistillConfig, wanted: DistillConfig) -> None:
    """ValueError, naming what differs, where a run that is there was made otherwise; on which machine is all one."""
    names = [field.name for field in fields(DistillConfig) if field.name not in ("machine", "pairs", "preset")]
    if odd := [name for name in names if getattr(found, name) != getattr(wanted, name)]:
        made, asked = (f"{flag_of(odd[0])} {getattr(one, odd[0])}" for one in (found, wanted))
        raise ValueError(f"{wanted.out} was made with {made}, asked for is {asked}: choose another --out")


def batches(pairs: PairDataset, size: int = 500) -> Iterable[Tensor]:
    """The images of pairs."""
    return (pairs[range(start, min(start + size, len(pairs)))][1] for start in range(0, len(pairs), size))


def draw_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Distance and recall of each row: a dot for each seed, a bar to their mean, a line at the teacher's distance."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    (teacher, *rows), titles = rows, {"frechet": "Fréchet distance in the judge's features", "recall": "recall"}
    figure = Figure(figsize=(9, 1 + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        axes.barh(range(len(rows)), [row[key]["mean"] for row in rows], color="C0", alpha=0.4)
        for i, row in enumerate(rows):
            axes.plot(row[key]["values"], [i] * len(row[key]["values"]), "o", color="C0", markersize=4)
        axes.set_title(title, fontsize="medium")
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # few, and in plain digits, whatever the range
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter("")
    panels[0].axvline(teacher["frechet"]["mean"], color="black", linestyle=":")
    panels[0].set_yticks(range(len(rows)), [row["row"] for row in rows])
    panels[0].invert_yaxis()
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
