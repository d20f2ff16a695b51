"""A network of one's own: trained by flow matching, in plain PyTorch, and then distilled into one step.

    python -m examples.own_model
    dmdistill distill --teacher examples.own_model:teacher --preset small-network --out runs/own

The network knows nothing of dmdistill. Its images, in place of yours, are drawn by the bundled student.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmdistill import Flow, FlowDenoiser, LabelSpace, Teacher, load_model
from dmdistill.data.conditions import Labels

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
WEIGHTS = Path("own-model.pt")


class Block(nn.Module):
    """A residual block of two convolutions, to which the embedding of time and class is added."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.embed = nn.Linear(embedding, out)
        self.second = nn.Sequential(nn.GroupNorm(8, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return features of the same size."""
        h = self.first(x) + self.embed(embedding)[:, :, None, None]
        return self.skip(x) + self.second(h)


class UNet(nn.Module):
    """A small U-Net that predicts the velocity noise - image of 28 x 28 images: 0.3 M parameters."""

    def __init__(self, channels: int = 32, embedding: int = 128) -> None:
        super().__init__()
        self.embed_class = nn.Linear(len(CLASSES), embedding)
        self.embed_time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, channels, 3, padding=1))
        self.down = nn.ModuleList([Block(channels, channels, embedding), Block(channels, 2 * channels, embedding)])
        self.middle = Block(2 * channels, 2 * channels, embedding)
        self.up = nn.ModuleList([Block(4 * channels, channels, embedding), Block(2 * channels, channels, embedding)])
        self.leave = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor, cond: Labels) -> Tensor:
        """Return the velocity at x_t (B 1 28 28) and times t (B) from 0, the image, to 1, the noise."""
        frequencies = torch.exp(-math.log(1e4) * torch.arange(32, device=t.device) / 32)
        waves = 1000 * t[:, None] * frequencies
        embedding = self.embed_time(torch.cat([waves.cos(), waves.sin()], 1)) + self.embed_class(cond.one_hot)
        large = self.down[0](self.enter(x_t), embedding)
        small = self.down[1](F.avg_pool2d(large, 2), embedding)
        h = torch.cat([self.middle(small, embedding), small], 1)
        h = torch.cat([F.interpolate(self.up[0](h, embedding), scale_factor=2), large], 1)
        return F.pixel_shuffle(self.leave(self.up[1](h, embedding)), 2)


def draw_images(count: int) -> tuple[Tensor, Tensor]:
    """Return as many images of each class, in [-1, 1], and their classes: the place of your own data."""
    student = load_model("fashion-student")
    images = torch.cat([student(labels=[label], count=count, seed=label) for label in range(len(CLASSES))])
    return images, torch.arange(len(CLASSES)).repeat_interleave(count)


def train(images: Tensor, labels: Tensor, *, steps: int = 1500, batch: int = 64) -> UNet:
    """Train a network by flow matching (Lipman et al. 2023; Liu et al. 2023), and return the average of its weights."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = UNet()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    space = LabelSpace(CLASSES)
    for step in range(steps):
        index = torch.randint(len(images), (batch,), generator=rng)
        x, noise = images[index], torch.randn(batch, *images.shape[1:], generator=rng)
        t = torch.rand(batch, generator=rng)
        x_t = torch.lerp(x, noise, t[:, None, None, None])
        loss = F.mse_loss(net(x_t, t, space.select(labels[index])), noise - x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        average.update_parameters(net)
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}, loss {loss.item():.4f}")
    return average.module


def teacher() -> Teacher:
    """Return the trained network as a teacher: all that dmdistill has to be told."""
    net = UNet()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return Teacher(
        name="own-model",
        denoiser=FlowDenoiser(net, Flow()),
        shape=(1, 28, 28),
        conditions=LabelSpace(CLASSES),
        solver="heun",
        steps=18,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the network.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=800, help="of each class")
    options = parser.parse_args()
    torch.save(train(*draw_images(options.images), steps=options.steps).state_dict(), WEIGHTS)
