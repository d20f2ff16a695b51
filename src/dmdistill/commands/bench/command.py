"""`dmdistill bench`: the speed of a student beside its teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.commands.bench.compare import BenchmarkCase, compare, compile_case
from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.bench.timers import device_clock
from dmdistill.commands.options import SolverOptions, check
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.solver_options import with_solver_options
from dmdistill.core.solvers import SOLVERS
from dmdistill.io.atomic import check_writable, write_json
from dmdistill.io.errors import first_line
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Model, Student, Teacher

__all__ = ["bench"]

PROMPT = "a photograph"  # a network takes equally long for every prompt, and encoding is not timed


def bench(config: BenchConfig) -> dict[str, Any]:
    """Print a table of speed and memory, write it to `config.json` if given, and return it."""
    check(config)
    if config.json is not None:
        check_writable(config.json)
    models = load_models(config)
    device, precision = setup_compute(config.compute)
    models = [
        with_prompt_texts(model, [PROMPT], device=device) if model.text is not None else model for model in models
    ]
    models = [model.to(device, precision).cast_weights() for model in models]
    cases = [BenchmarkCase(model) for model in models]
    cases += [compile_case(model) for model in models] if config.compile else []
    result = compare(cases, device_clock(device), repeats=config.repeats, max_batch=config.max_batch)
    report = {"hardware": describe_hardware(device, precision), "repeats": config.repeats, **result}
    Console().print(make_table(report))
    if config.json is not None:
        write_json(config.json, report)
    return report


def load_models(config: BenchConfig) -> list[Model]:
    """Load a student's teacher, with the solver of the student's pairs, and the student; or a teacher only."""
    teacher = load_teacher(config.teacher) if config.teacher is not None else None
    model = load_model(config.model, teacher=teacher)
    if teacher is not None and (size := image_size(model)) != image_size(teacher):
        teacher = load_teacher(str(config.teacher), size=size)
        model = load_model(config.model, teacher=teacher)
    if isinstance(model, Teacher):
        if teacher is not None:
            raise ValueError(f"--teacher {config.teacher} with the teacher {config.model}: expected a student")
        return [with_solver_options(model, config.ode)]
    assert isinstance(model, Student)
    teacher = teacher or load_students_teacher(model, config.model)
    if teacher.shape != model.shape:
        raise ValueError(f"{teacher.name} makes {teacher.shape}, {model.name} {model.shape}: not its teacher")
    teacher = with_solver_options(teacher, read_solver(distillation_settings(model), config.model))
    return [with_solver_options(teacher, config.ode), model]


def image_size(model: Model) -> tuple[int, int] | None:
    """Return the size of a model's images where it is not that of its network's training; else None."""
    size = model.config.get("image_size")
    return (size[0], size[1]) if size else None


def load_students_teacher(student: Student, source: str) -> Teacher:
    """Load the teacher that a student's config.json names. ValueError where it names none or that one is missing."""
    name = student.config.get("teacher") or distillation_settings(student).get("teacher")
    if name is None:
        raise ValueError(f"{source} does not name its teacher: give --teacher")
    try:
        return load_teacher(str(name), size=image_size(student))
    except ValueError as error:
        raise ValueError(f"the teacher of {source} cannot be loaded, give --teacher: {first_line(error)}") from None


def read_solver(settings: dict[str, Any], source: str) -> SolverOptions:
    """Return the solver of a student's training pairs. ValueError where its config.json is damaged."""
    known = {
        name: settings[name]
        for name in ("solver", "solver_steps", "guidance", "true_guidance")
        if settings.get(name) is not None
    }
    allowed = {
        "solver": lambda value: value in tuple(SOLVERS),
        "solver_steps": lambda value: isinstance(value, int) and value >= 1,
        "guidance": lambda value: isinstance(value, int | float) and value >= 0,
        "true_guidance": lambda value: isinstance(value, int | float) and value >= 0,
    }
    for name, value in known.items():
        if not allowed[name](value):
            raise ValueError(f"{source}: the {name} of its distillation is {value!r}, no option of a solver")
    return SolverOptions(**known)


def distillation_settings(student: Student) -> dict[str, Any]:
    """Return the settings of the student's distillation, as far as its config.json has any."""
    settings = student.config.get("distilled")
    return settings if isinstance(settings, dict) else {}


def describe_hardware(device: torch.device, precision: torch.dtype | None) -> str:
    """Return the name of the device, the precision and the version of torch."""
    threads = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} thread(s)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return f"{name}, {'fp32' if precision is None else 'bf16'}, torch {torch.__version__}"


def make_table(report: dict[str, Any]) -> Table:
    """Build the table: a row for each case at batch 1, then one for each at its best batch size."""
    rows = report["rows"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: row["model"],
        "network": lambda row: row["mode"] if any(row["mode"] == "compiled" for row in rows) else "",
        "evaluations": lambda row: str(row["evaluations_per_image"]),
        "batch": lambda row: str(row["batch"]),
        "latency, ms": lambda row: f"{1e3 * row['seconds']['median']:.4g} ± {relative_spread(row):.0%}",
        "images/s": lambda row: f"{row['images_per_second']:.4g}",
        "speed-up": lambda row: f"{row['speedup']:.2f}",
        "memory, GB": lambda row: f"{row['memory_bytes'] / 1e9:.2f}" if row["memory_bytes"] is not None else "",
    }
    columns = {title: cell for title, cell in columns.items() if any(map(cell, rows))}
    table = Table(*columns, title=escape(report["hardware"]))
    for i, row in enumerate(rows, 1):
        table.add_row(*(escape(cell(row)) for cell in columns.values()), end_section=2 * i == len(rows))
    return table


def relative_spread(row: dict[str, Any]) -> float:
    """Return half the distance of the quartiles over the median."""
    seconds = row["seconds"]
    return (seconds["high"] - seconds["low"]) / 2 / seconds["median"]
