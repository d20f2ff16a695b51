"""`dmdistill reproduce fig4`."""

from __future__ import annotations

from typing import Any

import torch

from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.fig4 import experiment
from dmdistill.commands.reproduce.fig4.plot import plot_fig4
from dmdistill.commands.reproduce.tables import print_rows, summarize_seeds
from dmdistill.commands.run_folder import setup_compute
from dmdistill.io.atomic import write_json

__all__ = ["fig4"]


def fig4(config: ReproduceConfig) -> dict[str, Any]:
    """Write fig4.png and fig4.json into `config.out`, print and return the table."""
    setup_compute(config.compute)
    undiffused = {"KL": "infinite", "gradient": "undefined", "sampled": "undefined", "with Eq. 8": "undefined"}
    rows: list[dict[str, Any]] = [{"sigma": 0.0, "overlap": 0.0, **undiffused}]
    for sigma in experiment.SIGMAS:
        exact = {"overlap": experiment.overlap(sigma), "KL": experiment.kl_divergence(sigma)}
        generators = [torch.Generator().manual_seed(seed) for seed in range(config.seeds)]
        runs = [experiment.monte_carlo_gradient(sigma, rng) for rng in generators]
        rows.append({"sigma": sigma, **exact, "gradient": experiment.mean_gradient(sigma), **summarize_seeds(runs)})
    table = {"figure": "fig4", "seeds": config.seeds, "samples": experiment.SAMPLES, "rows": rows}
    plot_fig4(config.out / "fig4.png", rows)
    write_json(config.out / "fig4.json", table)
    print_rows(rows, config.out / "fig4.png", style=".3g", error_style=".1g")
    return table
