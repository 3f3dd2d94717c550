"""The connector: feature maps of a vision tower → words, a mixture of them in each visual token."""

from __future__ import annotations

import torch
from torch import nn

from mmlora.smolbridge.config import SmolBridgeConfig

CELL = 32  # pixels a side of one cell, the stride of the vision tower's deepest feature map
LAST = 1280  # numbers of EfficientNet-Lite0's last vector, which its ImageNet classifier reads
CLASSES = 1000  # names of ImageNet


class Namer(nn.Module):
    """What EfficientNet-Lite0 has above its deepest map, frozen: the last vector, and a score for each ImageNet name."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_head = nn.Conv2d(channels, LAST, 1)
        self.classifier = nn.Linear(LAST, CLASSES)

    def forward(self, deepest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map of stride 32 → vectors (batch, 1280) and scores (batch, 1000) before the softmax."""
        last = nn.functional.relu6(self.conv_head(deepest)).mean((2, 3))
        return last, self.classifier(last)


class Connector(nn.Module):
    """The connector: feature maps of strides 8, 16 and 32 → what each visual token says.

    Each 32 x 32 pixel cell is described by everything the three maps hold there (space to depth, nothing pooled
    away), narrowed to `cell_width` numbers. A convolution recognises what a cell and its neighbours show, wherever it is;
    then a perceptron with one hidden layer reads all cells at once and gives every word of the dictionary a score in every
    visual token. Where there is a glance at the whole picture, hidden units of its own read it: one layer for both would
    learn by heart where things lay, and name them worse.
    """

    def __init__(self, config: SmolBridgeConfig, channels: list[int]):
        super().__init__()
        self.side, self.said = config.image_size // CELL, config.visual_tokens - config.naming_tokens
        self.fold = [nn.PixelUnshuffle(CELL // stride) for stride in (8, 16, 32)]
        cell_size = sum(c * (CELL // stride) ** 2 for c, stride in zip(channels, (8, 16, 32)))
        glance_size = 2 * sum(channels) + LAST if config.glance_width else 0
        self.seen_size = self.side**2 * config.cell_width + glance_size
        self.norm_in = nn.LayerNorm(cell_size)
        self.describe = nn.Linear(cell_size, config.cell_width)
        self.recognise = nn.Conv2d(config.cell_width, config.cell_width, 3, padding=1)
        self.read = nn.Linear(self.side**2 * config.cell_width, config.connector_width)
        self.glimpse = nn.Linear(glance_size, config.glance_width) if config.glance_width else None
        known = config.connector_width + config.glance_width
        self.write = nn.Linear(known, self.said * (config.spelling or config.dictionary))
        self.spell = nn.Linear(config.spelling, config.dictionary) if config.spelling else nn.Identity()
        self.register_buffer("word_ids", torch.arange(config.dictionary))  # the decoder's token of each word
        if config.glance_width:  # where numbers of a glance lie, over many pictures
            self.register_buffer("usual", torch.zeros(glance_size))
            self.register_buffer("spread", torch.ones(glance_size))
        if config.naming_tokens:  # the words of each ImageNet name, as places in the dictionary
            self.register_buffer("names", torch.zeros(CLASSES, config.naming_tokens, dtype=torch.long))

    def cells(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Feature maps → (batch, cells, cell_size), the frozen description the connector reads."""
        folded = torch.cat([fold(m) for fold, m in zip(self.fold, maps)], dim=1)
        return folded.flatten(2).transpose(1, 2)

    def glance(self, maps: list[torch.Tensor], last: torch.Tensor) -> torch.Tensor:
        """Feature maps and the last vector → (batch, glance_size): means and maxima, each part of length one."""
        parts = [pooled for m in maps for pooled in (m.mean((2, 3)), m.amax((2, 3)))]
        return torch.cat([nn.functional.normalize(part, dim=-1) for part in (*parts, last)], dim=-1)

    def seen(self, cells: torch.Tensor, glance: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, cells, cell_size) and the glance → (batch, numbers), what training begins with."""
        described = self.describe(self.norm_in(cells)).flatten(1)
        return described if glance is None else torch.cat([described, (glance - self.usual) / self.spread], dim=-1)

    def known(self, seen: torch.Tensor, cell_dropout: float = 0.0, dropout: float = 0.0) -> torch.Tensor:
        """(batch, numbers) → (batch, connector_width + glance_width), what is known of the picture before it is put in words.

        Dropout, of the cells' numbers and of all others, is for training.
        """
        described, glance = seen.tensor_split([self.read.in_features], dim=1)
        grid = described.unflatten(1, (self.side**2, -1)).transpose(1, 2).unflatten(2, (self.side, self.side))
        recognised = (grid + nn.functional.gelu(self.recognise(grid))).flatten(1)
        units = [self.read(nn.functional.dropout(recognised, cell_dropout, cell_dropout > 0))]
        if self.glimpse is not None:
            units.append(self.glimpse(nn.functional.dropout(glance, dropout, dropout > 0)))
        return nn.functional.dropout(nn.functional.gelu(torch.cat(units, dim=1)), dropout, dropout > 0)

    def forward(self, cells: torch.Tensor, glance: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, cells, cell_size) and the glance → scores (batch, said, dictionary) of the words, before the softmax."""
        return self.words(self.seen(cells, glance))

    def words(self, seen: torch.Tensor, cell_dropout: float = 0.0, dropout: float = 0.0) -> torch.Tensor:
        """(batch, numbers) → scores (batch, said, dictionary); dropout as in `known`."""
        return self.spell(self.write(self.known(seen, cell_dropout, dropout)).unflatten(1, (self.said, -1)))

    def named(self, chances: torch.Tensor) -> torch.Tensor:
        """Probabilities (batch, 1000) of ImageNet's names → (batch, naming_tokens, dictionary) of their words."""
        words = chances.new_zeros(*self.names.shape[1:], len(self.word_ids), len(chances))
        for place, ids in enumerate(self.names.T):
            words[place].index_add_(0, ids, chances.T)
        return words.movedim(-1, 0)
