"""Optimizer of one network: from a loss to updated weights and averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.distributed.data_parallel import NOT_PARALLEL, Parallelism, full_tensor, local_tensor, shard_like
from dmdistill.training.ema import EMA, ImplicitAlignment

__all__ = ["NetworkOptimizer"]


class NetworkOptimizer:
    """Backward pass, gradient clipping, AdamW, learning-rate schedule and EMAs of one network.

    Args:
        network: network to train; it is sharded in place if `parallel` shards.
        lr: learning rate after warm-up.
        steps: number of updates at which a decaying learning rate reaches zero.
        name: of the network, for messages.
        betas: of AdamW.
        weight_decay: of AdamW.
        eps: of AdamW.
        warmup: number of updates over which the learning rate rises linearly.
        restart: update at which it rises once more over `warmup`, for a loss of another kind.
        decay: multiply the learning rate by a cosine that falls from 1 to 0.
        clip: largest L2 norm of the gradient.
        clip_value: largest entry of the gradient, after that; None for no limit.
        halflives: half-life of each EMA, in updates.
        parallel: how a batch is divided. Each call takes the loss of a microbatch; the network is updated after the
            last, by their mean over all processes.

    Attributes:
        emas: averages of the network, in the order of `halflives`.
        alignments: other networks in training that each update moves towards this one; none at first.
        parameters: trained parameters.
        optimizer: the AdamW optimizer.
        scheduler: its learning-rate scheduler.
        count: number of updates.
        gradient_norm: L2 norm of the last gradient before clipping; None before the first and once it is logged.
        check_finite: wait for the device after each gradient, and raise if it or the loss is not finite.
        nonfinite: 1 from the first non-finite loss or gradient on, else 0, on the device; the network then stays as it
            is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        steps: int,
        name: str = "network",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        warmup: int = 500,
        restart: int = 0,
        decay: bool = False,
        clip: float = 10.0,
        clip_value: float | None = None,
        halflives: Sequence[float] = (),
        parallel: Parallelism = NOT_PARALLEL,
    ) -> None:
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError(f"the {name} has no parameters to train")
        self.network, self.name, self.parallel = network, name, parallel
        self.clip, self.clip_value = clip, clip_value
        self.emas = sharded_emas(network, halflives, parallel)
        self.alignments: list[ImplicitAlignment] = []
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        named = network.named_parameters(remove_duplicate=False)
        self.frozen = {name for name, parameter in named if not parameter.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

        def factor(count: int) -> float:
            since = count - restart if count >= restart else count
            rise = min(1.0, (since + 1) / max(warmup, 1))
            return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, count / max(steps, 1))) if decay else 1.0)

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.losses: list[Tensor] = []  # of the microbatches so far
        self.count = 0
        self.gradient_norm: Tensor | None = None
        self.check_finite = True
        self.nonfinite = torch.zeros(())

    def __call__(self, loss: Tensor) -> None:
        """Add the gradient of a microbatch's loss; after the last microbatch, update the network.

        Whether all was finite is decided on the device and recorded in `nonfinite`. FloatingPointError if
        `check_finite` and the loss or the gradient is not.
        """
        microbatches = self.parallel.microbatches
        (loss if microbatches == 1 else loss / microbatches).backward()
        self.losses.append(loss.detach())
        if len(self.losses) == microbatches:
            mean = self.losses[0] if microbatches == 1 else torch.stack(self.losses).mean()
            self.update(self.parallel.processes.all_mean(mean))

    def update(self, loss: Tensor) -> None:
        """Update the network and its EMAs by the accumulated gradient of this loss."""
        self.losses = []
        self.gradient_norm = norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        if self.check_finite and not finite:
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the {self.name}'s loss is {loss.item()}, the norm of its gradient {norm.item()}")
        if self.clip_value is not None:
            for gradient in (local_tensor(p.grad) for p in self.parameters if p.grad is not None):
                gradient.clamp_(-self.clip_value, self.clip_value)
        self.nonfinite = torch.maximum(self.nonfinite.to(finite.device), (~finite).float())
        setattr(self.optimizer, "found_inf", self.nonfinite)  # noqa: B010  if 1, fused AdamW changes nothing
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.count += 1
        for average in (*self.emas, *self.alignments):
            average.update(self.count)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the state dict of the network or of an EMA of it, without the frozen parameters."""
        return {name: tensor for name, tensor in network.state_dict().items() if name not in self.frozen}

    def load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        """Load what `weights` returned into the network or an EMA of it. KeyError if the names differ.

        Weights of parameters that are frozen now, as those of an earlier version can be, are left out.
        """
        own, weights = self.weights(network), {name: w for name, w in weights.items() if name not in self.frozen}
        if differing := sorted(weights.keys() ^ own.keys()):
            raise KeyError(f"{len(differing)} names differ from the {self.name}'s, first {differing[0]!r}")
        network.load_state_dict({name: shard_like(w, own[name]) for name, w in weights.items()}, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, AdamW's state, weights of the EMAs, number of updates."""
        return {
            "network": self.weights(self.network),
            "optimizer": self.optimizer.state_dict(),
            "emas": [self.weights(ema.network) for ema in self.emas],
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state; learning rate, betas and weight decay stay as they are set here."""
        self.load_weights(self.network, state["network"])
        self.nonfinite, self.losses = torch.zeros(()), []
        self.optimizer.zero_grad()
        groups = self.optimizer.state_dict()["param_groups"]
        saved = [name for name, _ in self.network.named_parameters() if name in state["network"]]
        own = {name: i for i, name in enumerate(name for name in saved if name not in self.frozen)}
        found = {own[saved[i]]: one for i, one in state["optimizer"]["state"].items() if saved[i] in own}
        moments = {i: self.shard_moments(i, one) for i, one in found.items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for ema, weights in zip(self.emas, state["emas"], strict=True):
            self.load_weights(ema.network, weights)
        self.count = self.scheduler.last_epoch = state["count"]
        for group, base, factor in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.count)

    def tensor_like(self, name: str) -> Tensor:
        """Return an empty tensor for the weight or moment that `state_dict` has under a name like emas/0/net.weight.

        KeyError, IndexError or ValueError for a name that is not in it.
        """
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            return torch.empty_like(self.parameters[int(rest.split("/")[1])].detach())
        own = dict(self.network.named_parameters(remove_duplicate=False))
        return torch.empty_like(own[rest if kind == "network" else rest.partition("/")[2]].detach())

    def shard_moments(self, index: int, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shard AdamW's state of a parameter as the parameter is, in the memory layout that its kernel relies on."""
        like = self.parameters[index].detach()
        return {
            name: torch.empty_like(like).copy_(shard_like(moment, like)) if moment.ndim else moment  # step is a scalar
            for name, moment in moments.items()
        }


def sharded_emas(network: nn.Module, halflives: Sequence[float], parallel: Parallelism) -> list[EMA]:
    """Build the EMAs of a network; shard them, one after another to save memory, and then the network."""
    emas = []
    for halflife in halflives:
        emas.append(EMA(network, halflife=halflife))
        parallel.shard(emas[-1].network)
    parallel.shard(network)
    for ema in emas:
        ema.follow(network)
    return emas
