"""One iteration of a distillation: ours beside a plain one, in time, memory and operations; gain of each optimisation.

    python benchmarks/step.py [fashion cifar10 imagenet64 sd15] [--batch 4] [--rounds 5] [--what losses time ...]

Both take the same draws and have the same losses, which is checked first. Time: medians over rounds in which each takes
its turn; on a CPU processor time, which other work on the computer does not lengthen. Memory: growth of the peak
resident memory of a separate process; on CUDA, the allocator's peak. Operations and live tensors are counted without
data, also of networks that are too large for this computer.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from resident import peak_resident_size, resident_size, run_json
from rich.console import Console
from rich.table import Table
from step_cases import CASES, make_batch
from step_tricks import SAVES_MEMORY, TRICKS, Ours, applicable_tricks, default_allocator
from torch import Tensor, nn

from dmdistill.commands.bench.timers import Spread, device_clock, time_call
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.plan.dry_run import dry_run
from dmdistill.commands.plan.tensor_ledger import FakeTensors, Ledger
from dmdistill.commands.presets import from_preset
from dmdistill.commands.run_folder import setup_compute
from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.losses import pseudo_huber
from dmdistill.core.samples import Batch
from dmdistill.io.atomic import write_json
from dmdistill.models.model import Teacher
from dmdistill.training.progress import track

WHAT = ("losses", "time", "tricks", "memory", "tensors")
ITERATIONS = {"1:1": 1, "5:1": 5}  # updates of the fake score per update of the generator


class Plain:
    """Plain implementation, as in the public repositories.

    All in fp32; G(z) and G(z_ref) in two calls, guidance in two, a call for each further update of the fake score;
    PyTorch's default AdamW; an EMA parameter by parameter; each loss copied to the host, for the log and to check that
    it is finite; gradients freed before the next backward pass.
    """

    def __init__(self, teacher: Teacher, config: DistillConfig, rng: torch.Generator) -> None:
        self.config, self.teacher, self.rng = config, teacher, rng
        self.real, self.guidance = teacher.denoiser.requires_grad_(False), teacher.guidance
        self.generator: Denoiser = copy.deepcopy(self.real).requires_grad_(True)
        self.fake: Denoiser = copy.deepcopy(self.real).requires_grad_(True)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.decay = 0.5 ** (1 / config.optimizer.ema_halflives[0])
        rates = {self.generator: config.optimizer.lr, self.fake: config.fake_score.lr_fake}
        self.optimizers = {network: self.build_optimizer(network, rate) for network, rate in rates.items()}

    def build_optimizer(
        self, network: nn.Module, lr: float
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        options = self.config.optimizer
        adam = torch.optim.AdamW(network.parameters(), lr=lr, betas=options.betas, weight_decay=options.weight_decay)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda count: min(1.0, (count + 1) / options.warmup))

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        path = self.generator.schedule
        return self.generator(path.prior_std * z, torch.full((len(z),), path.t_max, device=z.device), cond)

    def diffuse(self, x: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return x_t and t."""
        t = self.real.schedule.sample_t(len(x), low, high, rng=self.rng)
        eps = torch.randn(x.shape, generator=self.rng, device=x.device)
        return self.real.schedule.diffuse(x, eps, t), t

    def mu_real(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        conditional = self.real(x_t, t, cond)
        if self.guidance == 1 or cond is None:
            return conditional
        null = self.real(x_t, t, cond.null())
        return null + self.guidance * (conditional - null)

    def distribution_matching(self, x: Tensor, cond: Condition | None) -> Tensor:
        with torch.no_grad():
            x_t, t = self.diffuse(x, self.config.matching.min_t, self.config.matching.max_t)
            real, fake = self.mu_real(x_t, t, cond), self.fake(x_t, t, cond)
            weight = (x - real).abs().mean(dim=(1, 2, 3), keepdim=True)
            grad = (fake - real) / weight
        return 0.5 * nn.functional.mse_loss(x, (x - grad).detach())

    def denoising(self, x: Tensor, cond: Condition | None) -> Tensor:
        x_t, t = self.diffuse(x)
        return (self.fake.weight(t)[:, None, None, None] * (self.fake(x_t, t, cond) - x) ** 2).mean()

    def update(self, network: Denoiser, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        optimizer, scheduler = self.optimizers[network]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.config.optimizer.grad_clip)
        optimizer.step()
        scheduler.step()

    def step(self, batch: Batch) -> dict[str, float]:
        assert batch.z_ref is not None
        assert batch.y_ref is not None
        x = self.generate(batch.z, batch.cond)
        x_ref = self.generate(batch.z_ref, batch.cond_ref)
        loss_kl = self.distribution_matching(x, batch.cond)
        loss_reg = pseudo_huber(x_ref, batch.y_ref).mean()
        self.update(self.generator, loss_kl + self.config.regression.lambda_reg * loss_reg)
        for average, parameter in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            average.copy_(parameter.detach().lerp(average, self.decay))

        loss_fake = self.denoising(x.detach(), batch.cond)
        self.update(self.fake, loss_fake)
        for start in range(0, len(batch.z_fake) if batch.z_fake is not None else 0, len(batch.z)):
            assert batch.z_fake is not None
            rows = slice(start, start + len(batch.z))
            cond = batch.cond_fake[rows] if batch.cond_fake is not None else None
            with torch.no_grad():
                x = self.generate(batch.z_fake[rows], cond)
            loss_fake = self.denoising(x, cond)
            self.update(self.fake, loss_fake)
        return {"loss_kl": loss_kl.item(), "loss_reg": loss_reg.item(), "loss_fake": loss_fake.item()}


Implementation = Plain | Ours

MB = 1e6


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Args:
        name: of the case.
        kind: "plain" or "ours".
        device: to run on.
        precision: of ours.
        batch: generated images of a step, and as many pairs.
        fake_steps: updates of the fake score per update of the generator.
        trick: optimisation of ours to do without.
    """

    name: str
    kind: str
    device: str
    precision: str
    batch: int
    fake_steps: int = 1
    trick: str | None = None

    @property
    def config(self) -> DistillConfig:
        """The paper's settings for CIFAR-10, with a distance that needs no network."""
        compute = ComputeOptions(device=self.device, precision=self.precision, threads=torch.get_num_threads())  # type: ignore[arg-type]
        sizes = {"batch": self.batch, "batch_reg": self.batch, "fake_steps": self.fake_steps}
        options = {"distance": "huber", "ema_halflives": (1000.0,), "match_from": 0.0}
        return from_preset(DistillConfig, "cifar10", **options, **sizes, compute=compute)


@contextmanager
def build(setting: Setting, *, data: bool = True) -> Iterator[tuple[Implementation, Ledger | None]]:
    """Yield the implementation, always with the same weights; without data, with a ledger."""
    torch.manual_seed(0)
    teacher, config = CASES[setting.name].teacher(), setting.config
    device, precision = setup_compute(config.compute)
    with ExitStack() as stack:
        if setting.kind == "ours":
            teacher.to(device, precision)
            run = stack.enter_context(dry_run(config, teacher, device=device, precision=precision, data=data))
            ours = Ours(run)
            if setting.trick is not None:
                stack.enter_context(TRICKS[setting.trick](ours))
            yield ours, run.ledger
            return
        stack.enter_context(default_allocator())
        teacher.denoiser.to(device)
        ledger = None
        if not data:
            mode, ledger = stack.enter_context(FakeTensors()), stack.enter_context(Ledger())
            teacher = replace(teacher, denoiser=mode.copy_network(teacher.denoiser))
        yield Plain(teacher, config, torch.Generator(device)), ledger


def steps(implementation: Implementation, setting: Setting, *, count: int) -> list[dict[str, float]]:
    """Run iterations with the same draws for every implementation; return their losses."""
    batch = make_batch(implementation.teacher, setting.batch, fake_steps=setting.fake_steps)
    implementation.rng.manual_seed(2)
    rows = [implementation.step(batch) for _ in range(count)]
    return [{name: float(loss) for name, loss in row.items()} for row in rows]


def loss_differences(setting: Setting, *others: Setting, count: int) -> list[float]:
    """Return the largest relative difference of each other setting's losses. The fake score is perturbed: none is 0."""
    found = []
    for one in (setting, *others):
        with build(one) as (implementation, _):
            for parameter in implementation.fake.parameters():
                parameter.data.mul_(1.02)
            rows = steps(implementation, one, count=count)
            found.append([loss for row in rows for loss in row.values()])
    return [max(abs(a - b) / abs(a) for a, b in zip(found[0], one, strict=True)) for one in found[1:]]


def count_cost(setting: Setting) -> dict[str, float]:
    """Count operations of one iteration and bytes of tensors at its peak, without data."""
    with build(setting, data=False) as (implementation, ledger):
        assert ledger is not None
        steps(implementation, setting, count=1)  # the optimizers get their states
        ledger.reset_peak()
        steps(implementation, setting, count=1)
        return {"flops": ledger.flops, "tensors": ledger.peak.total()}


def measure_memory(setting: Setting) -> dict[str, float]:
    """Measure the peak memory of an iteration, after one with a single image that loads all code."""
    first = replace(setting, batch=1)
    for one in (first, setting):
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = resident_size()
        with build(one) as (implementation, _):
            for part in dict.fromkeys((first, one)):
                steps(implementation, part, count=1)
            del implementation
    if setting.device == "cuda":
        return {"memory": torch.cuda.max_memory_allocated()}
    return {"memory": peak_resident_size() - before}


def measure_in_subprocess(setting: Setting) -> dict[str, float]:
    """Call `measure_memory` in a separate process."""
    threads = torch.get_num_threads()
    return run_json(__file__, "--measure", json.dumps(asdict(setting)), threads=threads, spare_memory=True)


def time_in_turns(
    setting: Setting, *, rounds: int, tricks: bool
) -> tuple[dict[str, dict[str, Spread]], dict[str, dict[str, float]]]:
    """Time both implementations, and 1:1 iterations of ours without each optimisation; count operations."""
    clock = time.process_time if setting.device == "cpu" else device_clock(torch.device(setting.device))
    with build(replace(setting, kind="plain")) as (plain, _), build(setting) as (ours, _):
        assert isinstance(ours, Ours)
        works: dict[tuple[str, str], tuple[Callable[[], Any], Callable[[], object]]] = {}
        flops: dict[str, dict[str, float]] = {iteration: {} for iteration in ITERATIONS}
        for iteration, fake_steps in ITERATIONS.items():
            one = replace(setting, fake_steps=fake_steps)
            batch = make_batch(plain.teacher, setting.batch, fake_steps=fake_steps)
            for kind, implementation in (("plain", plain), ("ours", ours)):
                flops[iteration][kind] = operations(implementation, one)
                context = default_allocator if kind == "plain" else nullcontext
                works[iteration, kind] = (context, partial(implementation.step, batch))
            for trick in applicable_tricks(ours) if tricks and fake_steps == 1 else []:
                works["tricks", trick] = (partial(TRICKS[trick], ours), partial(ours.step, batch))
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in works}
        for _ in track(range(rounds), f"timing {setting.name}"):
            for key, (context, work) in works.items():
                with context():
                    taken[key].append(time_call(work, clock))
    found: dict[str, dict[str, Spread]] = {}
    for (group, key), timings in taken.items():
        found.setdefault(group, {})[key] = Spread.from_timings(timings)
    return found, flops


def operations(implementation: Implementation, setting: Setting) -> float:
    """Count the operations of an iteration, on one image: they are proportional to the batch."""
    with Ledger() as ledger:
        steps(implementation, replace(setting, batch=1), count=1)
    return ledger.flops * setting.batch


def examine(setting: Setting, what: set[str], *, rounds: int) -> dict[str, Any]:
    """Measure a case. `what`: of "losses", "time", "tricks", "memory", and "tensors", counted without data."""
    plain = replace(setting, kind="plain")
    found: dict[str, Any] = {"batch": setting.batch, "apart": {}, "seconds": {}, "tricks": {}}
    figures = found["iterations"] = {iteration: {"plain": {}, "ours": {}} for iteration in ITERATIONS}
    if "losses" in what:
        few = {"batch": 1, "fake_steps": 2}
        kinds = [replace(plain, **few), *(replace(setting, precision=one, **few) for one in ("fp32", "auto"))]
        found["apart"] = dict(zip(("fp32", "auto"), loss_differences(*kinds, count=1), strict=True))
    if "time" in what:
        found["seconds"], flops = time_in_turns(setting, rounds=rounds, tricks="tricks" in what)
        for iteration, kind in product(ITERATIONS, ("plain", "ours")):
            figures[iteration][kind]["flops"] = flops[iteration][kind]
    for one in (plain, setting):
        if "memory" in what:
            figures["1:1"][one.kind] |= measure_in_subprocess(one)
        if "tensors" in what:
            figures["1:1"][one.kind] |= count_cost(one)
    measure_without = [one for one in SAVES_MEMORY if one in found["seconds"].get("tricks", {}) and "memory" in what]
    for trick in measure_without:
        found["tricks"][trick] = measure_in_subprocess(replace(setting, trick=trick))
    return found


def show(name: str, found: dict[str, Any], console: Console) -> None:
    """Print two tables: the iterations, and the optimisations."""
    console.print(f"{name}: {found['batch']} generated images and as many pairs a step")
    for precision, most in found["apart"].items():
        console.print(
            f"losses of a 2:1 iteration of an image, ours in {precision}: at most {most:.1e} relative difference"
        )
    time, memory = ("ms", "quartiles", "ratio", "TFLOP", "GFLOP/s"), ("memory, MB", "ratio", "tensors, MB", "ratio")
    table = Table("iteration", "", *time, *memory)
    for iteration, kinds in found["iterations"].items():
        for kind, figures in kinds.items():
            table.add_row(
                iteration,
                kind,
                *times(found["seconds"].get(iteration), kind),
                f"{figures['flops'] / 1e12:.3f}" if "flops" in figures else "",
                rate(found["seconds"].get(iteration), kind, figures),
                *sizes(kinds, kind, "memory"),
                *sizes(kinds, kind, "tensors"),
            )
    console.print(table)
    if without := found["seconds"].get("tricks"):
        table = Table("1:1, ours without", "ms", "quartiles", "saved", "memory, MB", "saved")
        for trick, took in without.items():
            share = found["seconds"]["1:1"]["ours"].median / took.median
            saved = saving(found["tricks"].get(trick), found["iterations"]["1:1"]["ours"])
            table.add_row(trick, *spread(took), f"{100 - 100 * share:.0f} %", *saved)
        console.print(table)


def saving(without: dict[str, float] | None, ours: dict[str, float]) -> list[str]:
    """Format the MB without an optimisation, and the share that it saves."""
    if without is None:
        return ["", ""]
    return [f"{without['memory'] / MB:.0f}", f"{100 - 100 * ours['memory'] / without['memory']:.0f} %"]


def spread(took: Spread) -> list[str]:
    return [f"{1e3 * took.median:.0f}", f"{1e3 * took.low:.0f} - {1e3 * took.high:.0f}"]


def times(seconds: dict[str, Spread] | None, kind: str) -> list[str]:
    """Format milliseconds, their quartiles, and the speed-up over the plain implementation."""
    if seconds is None:
        return ["", "", ""]
    return [*spread(seconds[kind]), f"{seconds['plain'].median / seconds[kind].median:.2f}"]


def rate(seconds: dict[str, Spread] | None, kind: str, figures: dict[str, float]) -> str:
    return f"{figures['flops'] / seconds[kind].median / 1e9:.1f}" if seconds is not None else ""


def sizes(kinds: dict[str, dict[str, float]], kind: str, what: str) -> list[str]:
    """Format MB, and their ratio to the plain implementation's."""
    if what not in kinds[kind]:
        return ["", ""]
    return [f"{kinds[kind][what] / MB:.0f}", f"{kinds[kind][what] / kinds['plain'][what]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--what", nargs="+", choices=WHAT, help="by default all but tensors; only tensors if the network is too large"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", metavar="SETTING", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure_memory(Setting(**json.loads(arguments.measure)))))
        return
    console, results = Console(width=140), {}
    for name in arguments.cases or CASES:
        case = CASES[name]
        setting = Setting(name, "ours", arguments.device, "auto", arguments.batch or case.batch)
        usual = WHAT[:-1] if case.on_cpu or arguments.device == "cuda" else WHAT[-1:]
        results[name] = examine(setting, set(arguments.what or usual), rounds=arguments.rounds)
        show(name, results[name], console)
    if arguments.json is not None:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
