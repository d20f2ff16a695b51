"""A small residual classifier, a feature extractor for images that Inception's features do not suit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Classifier"]


class ResidualBlock(nn.Module):
    """A pre-activation residual block (He et al. 2016b); stride 2 halves height and width, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm0 = nn.BatchNorm2d(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        changes = in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False) if changes else None
        nn.init.zeros_(self.conv1.weight)  # each block starts as its skip

    def forward(self, x: Tensor) -> Tensor:
        """Return B out_channels H W of x (B in_channels H W)."""
        h = self.conv0(F.relu(self.norm0(x)))
        h = self.conv1(F.relu(self.norm1(h)))
        x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return h + (self.skip(x) if self.skip is not None else x)


class Classifier(nn.Module):
    """A pre-activation ResNet of three resolutions, width, 2 width and 4 width channels: 0.36 M parameters at 32.

    Args:
        in_channels: of the image.
        classes: number of logits.
        width: channels at full resolution; there are 4 width features.
        dropout: probability of the features, in training.
    """

    def __init__(self, *, in_channels: int, classes: int, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_features = 4 * width
        self.dropout = dropout
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(  # a block at full resolution would take half as much time again
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 2 * width, stride=1),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.norm = nn.BatchNorm2d(4 * width)
        self.head = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features (B num_features, >= 0, averaged over positions) of x (B C H W in [-1, 1], of any size)."""
        return F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B classes) of x (B C H W in [-1, 1])."""
        return self.head(F.dropout(self.features(x), self.dropout, self.training))
