"""`dmdistill info`: what a model is, where a run stands."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.info.run_status import health, run_status
from dmdistill.models.load import load_model
from dmdistill.models.model import Model
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.training.metrics_log import read_metrics

__all__ = ["info"]


def info(config: InfoConfig) -> None:
    """Print a table: of the run where the folder is one, then of the model."""
    run = Path(config.model)
    rows = read_metrics(run) if run.is_dir() else []
    table = Table(show_header=False)
    if rows:
        table.add_row("run", str(run))
        for name, text in run_status(run, rows).items():
            table.add_row(name, text)
        latest = {key: value for row in rows for key, value in row.items() if key not in ("step", "seconds")}
        for key, value in latest.items():
            if not key.startswith(("gap_", "fake_loss_")):
                table.add_row(key, f"{value:.4g}")
        for name, text in health(rows).items():
            table.add_row(name, text)
    if not rows or any((run / kind / "config.json").exists() for kind in ("student", "teacher")):
        model = load_model(config.model)
        parameters = sum(p.numel() for p in model.network.parameters())
        table.add_row("model", f"{model.name}, a {model.config['kind']}")
        table.add_row("network", f"{network_class(model)}, {parameters / 1e6:.2f} M parameters")
        table.add_row("images", " x ".join(map(str, model.shape)))
        table.add_row("conditions", str(model.conditions or ("prompts" if model.text is not None else "none")))
        table.add_row("evaluations per image", str(model.evaluations))
        table.add_row("licence", model.licence)
    Console().print(table)


def network_class(model: Model) -> str:
    network = model.network
    return type(network.model if isinstance(network, DiffusersWrapper) else network).__name__
