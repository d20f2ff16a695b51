"""`dmdistill bench`: a student's speed beside its teacher's, and beside that of the bare networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.commands.bench.compare import Candidate, compare, compiled
from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.bench.timers import clock_on
from dmdistill.commands.options import SolverOptions
from dmdistill.commands.pairs.command import with_solver_options
from dmdistill.commands.presets import check_at_least, overlay
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.io.atomic import check_writable, write_json
from dmdistill.io.errors import first_line
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Model, Teacher

__all__ = ["bench"]

AnyModel = TypeVar("AnyModel", bound=Model)
PROMPT = "a photograph"  # the network takes equally long over all prompts; encoding them is not timed


def bench(config: BenchConfig) -> dict[str, Any]:
    """Print latency and throughput, all of one run; write them to config.json where asked."""
    check_at_least(config, 1, "repeats", "most")
    if config.json is not None:
        check_writable(config.json)
    models = models_of(config)
    device, precision = setup_compute(config.compute)
    models = [with_prompt(model, device).to(device, precision).cast_weights() for model in models]
    contestants = [Candidate(model) for model in models]
    if config.compile:
        contestants += [compiled(model) for model in models]
    result = compare(contestants, clock_on(device), repeats=config.repeats, most=config.most)
    report = {"machine": compute(device, precision), "repeats": config.repeats, **result}
    print_table(report)
    if config.json is not None:
        write_json(config.json, report)
    return report


def models_of(config: BenchConfig) -> list[Model]:
    """A student's teacher, sampled as its pairs were made, and the student; a teacher alone."""
    given = load_teacher(config.teacher) if config.teacher is not None else None
    model = load_model(config.model, teacher=given)
    if isinstance(model, Teacher):
        if given is not None:
            raise ValueError(f"--teacher {config.teacher} beside {config.model}, a teacher: expected a student there")
        return [with_solver_options(model, config.ode)]
    teacher = given or teacher_of(model, config.model)
    if teacher.shape != model.shape:
        raise ValueError(f"{teacher.name} makes {teacher.shape}, {model.name} {model.shape}: not its teacher")
    ode = distilled(model).get("ode")
    known = {key: value for key, value in ode.items() if value is not None} if isinstance(ode, dict) else {}
    teacher = with_solver_options(teacher, overlay(SolverOptions(), known, f"{config.model}, distilled.ode"))
    return [with_solver_options(teacher, config.ode), model]


def teacher_of(student: Model, given: str) -> Teacher:
    """The one that its config.json names. ValueError where that names none, or one that cannot be found."""
    name = student.config.get("teacher") or distilled(student).get("teacher")
    if name is None:
        raise ValueError(f"{given} does not say whose student it is: give --teacher")
    try:
        return load_teacher(str(name))
    except ValueError as error:
        raise ValueError(f"the teacher of {given} is not to be had, give --teacher: {first_line(error)}") from None


def distilled(student: Model) -> dict[str, Any]:
    """The settings of its distillation, as far as they are known."""
    settings = student.config.get("distilled")
    return settings if isinstance(settings, dict) else {}


def with_prompt(model: AnyModel, device: torch.device) -> AnyModel:
    """The model; one that is told text, told some."""
    return with_prompt_texts(model, [PROMPT], device=device) if model.text is not None else model


def compute(device: torch.device, precision: torch.dtype | None) -> str:
    """What was timed on, in a line."""
    threads = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} thread(s)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return f"{name}, {'fp32' if precision is None else 'bf16'}, torch {torch.__version__}"


def print_table(report: dict[str, Any]) -> None:
    """Latency, then throughput. What has no figures has no column."""
    rows = report["rows"]
    ways = len({row["way"] for row in rows})
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: escape(row["model"]),
        "network": lambda row: row["way"] if ways > 1 else "",
        "batch": lambda row: str(row["batch"]),
        "speed": speed,
        "faster": lambda row: f"{row['times_faster']:.2f} x",
        "bare ms": lambda row: f"{1e3 * row['network_seconds']['median']:.4g}" if row["network_seconds"] else "",
        "on top": lambda row: f"{row['overhead']:+.1%}" if row["network_seconds"] else "",
        "GB": lambda row: f"{row['memory_bytes'] / 1e9:.2f}" if row["memory_bytes"] else "",
    }
    shown = {name: show for name, show in columns.items() if any(map(show, rows))}
    table = Table(*shown, title=report["machine"])
    for i, row in enumerate(rows, 1):
        table.add_row(*(show(row) for show in shown.values()), end_section=2 * i == len(rows))
    Console().print(table)


def speed(row: dict[str, Any]) -> str:
    """Milliseconds of one image, or images per second; then half the distance of the quartiles, in percent."""
    seconds = row["seconds"]
    spread = (seconds["high"] - seconds["low"]) / 2 / seconds["median"]
    value = f"{1e3 * seconds['median']:.4g} ms" if row["measure"] == "latency" else f"{row['images_per_second']:.4g}/s"
    return f"{value} ± {spread:.0%}"
