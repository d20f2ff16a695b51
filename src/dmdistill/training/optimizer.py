"""Moving a network: what happens to a loss once the algorithm has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.distributed.data_parallel import NOT_PARALLEL, Parallelism, full_tensor, shard_like
from dmdistill.training.ema import EMA

__all__ = ["NetworkOptimizer"]


class NetworkOptimizer:
    """Takes losses and moves one network: backward, clip, AdamW, schedule, averages.

    Args:
        lr: reached after `warmup` updates; with decay it then falls by a cosine to zero at the last of `steps`.
        restart: the update from which it rises once more over `warmup`, as where a loss of another kind begins.
        name: of the network, for messages.
        clip: largest L2 norm of the gradient.
        halflives: of the averages kept, in updates.
        parallel: how a batch is divided: a loss is that of a part, and the network moves after the last, by their mean.

    Attributes:
        careful: wait for the device after each gradient, to say at once where one is not finite.
        bad: 1 from the first loss or gradient on that is not finite, on the device; the network stands still from then.
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
        warmup: int = 500,
        restart: int = 0,
        decay: bool = False,
        clip: float = 10.0,
        halflives: Sequence[float] = (),
        parallel: Parallelism = NOT_PARALLEL,
    ) -> None:
        self.network, self.parallel = network, parallel
        self.losses: list[Tensor] = []  # of the parts so far
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError("the network has no parameters to train")
        self.emas: list[EMA] = []
        for halflife in halflives:  # one after the other: no more than one is whole
            self.emas.append(EMA(network, halflife=halflife))
            parallel.shard(self.emas[-1].network)
        parallel.shard(network)
        for average in self.emas:
            average.follow(network)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        named = network.named_parameters(remove_duplicate=False)
        self.frozen = {name for name, parameter in named if not parameter.requires_grad}
        self.name = name
        self.clip = clip
        self.count = 0
        self.check_finite = True
        self.nonfinite = torch.zeros(())
        self.gradient_norm = torch.zeros(())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            fused=True,
        )

        def factor(count: int) -> float:
            since = count - restart if count >= restart else count
            rise = min(1.0, (since + 1) / max(warmup, 1))
            return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, count / steps)) if decay else 1.0)

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def __call__(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss; after the last part, move the network.

        It stands still where a loss or a gradient, or one before it, is not finite.

        That is decided on the device and noted in `bad`. Only where it is careful is the device waited for, and
        FloatingPointError raised.
        """
        parts = self.parallel.microbatches
        (loss if parts == 1 else loss / parts).backward()
        self.losses.append(loss.detach())
        if len(self.losses) == parts:
            mean = self.losses[0] if parts == 1 else torch.stack(self.losses).mean()
            self.move(self.parallel.processes.all_mean(mean))

    def move(self, loss: Tensor) -> None:
        """One update by the gradient there is, which is that of this loss."""
        self.losses = []
        self.gradient_norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        finite = torch.isfinite(self.gradient_norm) & torch.isfinite(loss)
        if self.check_finite and not finite:
            self.optimizer.zero_grad()
            norm = self.gradient_norm.item()
            raise FloatingPointError(f"the {self.name}'s loss is {loss.item()}, the norm of its gradient {norm}")
        self.nonfinite = torch.maximum(self.nonfinite.to(finite.device), (~finite).float())
        setattr(self.optimizer, "found_inf", self.nonfinite)  # noqa: B010  fused AdamW then leaves weights and moments alone
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.count += 1
        for average in self.emas:
            average.update(self.count)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """What may differ from the network's start, in it or in an average: all but the frozen parameters."""
        return {name: tensor for name, tensor in network.state_dict().items() if name not in self.frozen}

    def load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        own = self.weights(network)
        if odd := sorted(weights.keys() ^ own.keys()):
            raise KeyError(f"{len(odd)} names differ from the {self.name}'s, first {odd[0]!r}")
        network.load_state_dict({name: shard_like(w, own[name]) for name, w in weights.items()}, strict=False)

    def shard_moments(self, index: int, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """AdamW's state of a parameter, spread and laid out in memory as the parameter is, which its kernel relies on.

        The count of its steps is one number.
        """
        like = self.parameters[index].detach()
        laid = {name: torch.empty_like(like).copy_(shard_like(one, like)) for name, one in moments.items() if one.ndim}
        return moments | laid

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.weights(self.network),
            "optimiser": self.optimizer.state_dict(),
            "averages": [self.weights(average.network) for average in self.emas],
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_weights(self.network, state["network"])
        self.nonfinite, self.losses = torch.zeros(()), []
        self.optimizer.zero_grad()
        groups = self.optimizer.state_dict()["param_groups"]  # learning rate, betas: this run's, not the earlier one's
        moments = {i: self.shard_moments(i, found) for i, found in state["optimiser"]["state"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for average, weights in zip(self.emas, state["averages"], strict=True):
            self.load_weights(average.network, weights)
        self.count = self.scheduler.last_epoch = state["count"]
        for group, base, factor in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.count)
