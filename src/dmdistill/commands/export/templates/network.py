"""The network of an exported student as a diffusers model, at the end of the file that holds its U-Net's source."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class OneHot:
    """Class labels in the form that the U-Net takes: one_hot, B classes."""

    def __init__(self, one_hot: Tensor) -> None:
        self.one_hot = one_hot


class StudentNetwork(ModelMixin, ConfigMixin):
    """A U-Net with the call signature of diffusers' UNet2DModel.

    Args:
        network: name of the U-Net's class.
        settings: its arguments.
    """

    @register_to_config
    def __init__(self, network: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.net = globals()[network](**settings)
        self.net.map_noise.register_forward_hook(lambda *call: call[-1].to(self.dtype))  # it computes in fp32

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Evaluate F(sample, timestep, class_labels)."""
        labels = F.one_hot(class_labels, self.net.label_dim).to(sample) if class_labels is not None else None
        f = self.net(sample, timestep, OneHot(labels) if labels is not None else None)
        return {"sample": f} if return_dict else (f,)
