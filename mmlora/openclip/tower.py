"""EfficientNet-Lite0 as one image tower that open_clip finds by its timm name: several maps, pooled and joined.

What tells a drawing apart is half texture and colour, which the early maps hold, and half thing, which the last one holds;
and where in the picture they are, which the means of its quarters keep.
"""

from __future__ import annotations

import copy
from pathlib import Path

import timm
import torch
from timm.models import register_model
from torch import nn

from mmlora.smolbridge.assemble import vision_tensors
from mmlora.smolbridge.model import without_norms

NAME = "efficientnet_lite0_maps"  # what a model configuration calls it


class PooledMaps(nn.Module):
    """Pictures (batch, 3, side, side) → (batch, num_features): of three maps the mean, the maximum and the means of the
    quarters, and the last vector, each of length one."""

    default_cfg: dict = {}  # open_clip asks it for a pool size

    def __init__(self, trunk: nn.Module, stages: tuple[int, ...] = (2, 4, 6)):
        super().__init__()
        self.trunk, self.stages = trunk, stages
        self.num_features = trunk.num_features + 6 * sum(trunk.blocks[s][-1].conv_pwl.out_channels for s in stages)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """There is none: timm's own has been left out, and the pooling is this module's."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(memory_format=torch.channels_last)  # half as fast again on a processor
        found, x = [], self.trunk.bn1(self.trunk.conv_stem(pixels))
        for stage, block in enumerate(self.trunk.blocks):
            x = block(x)
            if stage in self.stages:
                found += [x.mean((2, 3)), x.amax((2, 3)), nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)]
        last = self.trunk.bn2(self.trunk.conv_head(x)).mean((2, 3))
        return torch.cat([nn.functional.normalize(part, dim=-1) for part in (*found, last)], dim=-1)


@register_model
def efficientnet_lite0_maps(pretrained: bool = False, **unused) -> PooledMaps:
    """The tower with random numbers; `load_published` brings the published ones."""
    return PooledMaps(timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool=""))


def load_published(tower: PooledMaps, file: Path) -> None:
    """The published numbers, without the classifier. Raises `WeightsError` where they do not fit."""
    named = vision_tensors(file)
    tower.trunk.load_state_dict({name: named[name] for name in tower.trunk.state_dict()})


def folded(tower: PooledMaps) -> PooledMaps:
    """A copy that only looks, each norm folded into the convolution before it: the same numbers, half as fast again."""
    return without_norms(copy.deepcopy(tower).eval())
