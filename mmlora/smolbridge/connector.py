"""The connector: feature maps of a vision tower → words, a mixture of them in each visual token."""

from __future__ import annotations

import torch
from torch import nn

from mmlora.smolbridge.config import SmolBridgeConfig

CELL = 32  # pixels a side of one cell, the stride of the vision tower's deepest feature map


class Connector(nn.Module):
    """The connector: feature maps of strides 8, 16 and 32 → what each visual token says.

    Each 32 x 32 pixel cell is described by everything the three maps hold there (space to depth, nothing pooled
    away), narrowed to `cell_width` numbers. A convolution recognises what a cell and its neighbours show, wherever it is;
    then a perceptron with one hidden layer reads all cells at once and gives every word of the dictionary a score in
    every visual token.
    """

    def __init__(self, config: SmolBridgeConfig, channels: list[int]):
        super().__init__()
        self.side, self.said = config.image_size // CELL, (config.visual_tokens, config.dictionary)
        self.fold = [nn.PixelUnshuffle(CELL // stride) for stride in (8, 16, 32)]
        cell_size = sum(c * (CELL // stride) ** 2 for c, stride in zip(channels, (8, 16, 32)))
        self.norm_in = nn.LayerNorm(cell_size)
        self.describe = nn.Linear(cell_size, config.cell_width)
        self.recognise = nn.Conv2d(config.cell_width, config.cell_width, 3, padding=1)
        self.read = nn.Linear(self.side**2 * config.cell_width, config.connector_width)
        self.write = nn.Linear(config.connector_width, config.visual_tokens * config.dictionary)
        self.register_buffer("word_ids", torch.arange(config.dictionary))  # the decoder's token of each word

    def cells(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Feature maps → (batch, cells, cell_size), the frozen description the connector reads."""
        folded = torch.cat([fold(m) for fold, m in zip(self.fold, maps)], dim=1)
        return folded.flatten(2).transpose(1, 2)

    def seen(self, cells: torch.Tensor) -> torch.Tensor:
        """(batch, cells, cell_size) → (batch, cells, cell_width), what training begins with."""
        return self.describe(self.norm_in(cells))

    def recognised(self, seen: torch.Tensor) -> torch.Tensor:
        """(batch, cells, cell_width) → (batch, cells * cell_width), the picture as the perceptron reads it."""
        grid = seen.transpose(1, 2).unflatten(2, (self.side, self.side))
        return (grid + nn.functional.gelu(self.recognise(grid))).flatten(1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(batch, cells, cell_size) → scores (batch, visual_tokens, dictionary) of the words, before the softmax."""
        return self.words(self.seen(cells))

    def words(self, seen: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        """(batch, cells, cell_width) → scores; `dropout` is for training."""
        inputs = nn.functional.dropout(self.recognised(seen), dropout, dropout > 0)
        known = nn.functional.dropout(nn.functional.gelu(self.read(inputs)), dropout, dropout > 0)
        return self.write(known).unflatten(1, self.said)
