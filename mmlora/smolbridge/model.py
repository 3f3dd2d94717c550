"""SmolBridge: a 150M vision-language model made of two pretrained towers and a trained connector.

    picture ──► EfficientNet-Lite0 ──► Connector ──► 24 visual tokens ──┐
    text    ──► SmolLM2's embeddings ──► text tokens ────────────────┴──► SmolLM2 ──► words

Each visual token is a mixture of the decoder's own word embeddings, as in AlignVLM (arXiv 2502.01341): the connector gives
every word of a small dictionary a probability, so what it reads in a picture can be printed, and the decoder is spoken to
in the language that it knows. It is an ordinary transformers model: `from_pretrained`, `save_pretrained`, `generate`.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmlora.smolbridge.config import SmolBridgeConfig
from mmlora.smolbridge.connector import Connector, Namer
from mmlora.smolbridge.processor import SmolBridgeProcessor


def plain_tower(name: str) -> nn.Module:
    """timm's model as published, reporting its feature maps of strides 8, 16 and 32."""
    return timm.create_model(name, features_only=True, out_indices=(2, 3, 4))


def without_norms(tower: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place: a frozen tower computes the same in less time."""
    for module in tower.modules():
        convolution: Any = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d):
                statistics = child.running_mean, child.running_var, child.eps
                fused = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, *statistics, child.weight, child.bias
                )
                convolution.weight, convolution.bias = fused
                setattr(module, name, child.act)  # timm's batch norms hold their activation
    return tower


class SmolBridgePreTrainedModel(PreTrainedModel):
    config_class = SmolBridgeConfig
    base_model_prefix = "model"
    _no_split_modules = ["LlamaDecoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Only what transformers does not know: everything else keeps torch's own initialisation."""
        if type(module).__module__.startswith("transformers."):
            super()._init_weights(module)


class SmolBridgeModel(SmolBridgePreTrainedModel):
    """Vision tower, connector and decoder without the vocabulary projection."""

    def __init__(self, config: SmolBridgeConfig):
        super().__init__(config)
        tower = plain_tower(config.vision_name)
        channels, self.vision_tower = tower.feature_info.channels(), without_norms(tower)
        self.connector = Connector(config, channels)
        self.namer = Namer(channels[-1]) if config.glance_width else None
        self.language_model = AutoModel.from_config(config.text_config)
        self.language_model.rotary_emb.register_forward_hook(_as_multiplied)
        self.post_init()

    def train(self, mode: bool = True):
        """The tower is frozen: it stays in evaluation mode even while the rest trains."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def get_image_view(
        self, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Pictures (batch, 3, size, size) → what comes before the connector: cell descriptions (batch, cells, cell_size),
        the glance (batch, glance_size) and the ImageNet classifier's scores (batch, 1000); None where the model has none.
        """
        few = (
            4 if pixel_values.device.type == "cpu" else len(pixel_values)
        )  # what stays in a processor's cache is faster
        parts = [self.vision_tower(p) for p in pixel_values.to(memory_format=torch.channels_last).split(few)]
        maps = [torch.cat(each).contiguous() for each in zip(*parts)]
        if self.namer is None:
            return self.connector.cells(maps), None, None
        last, scores = self.namer(maps[-1])
        return self.connector.cells(maps), self.connector.glance(maps, last), scores

    def get_image_words(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size) → probabilities (batch, visual_tokens, dictionary) of `connector.word_ids`.

        In the weights' own precision even under autocast: what was read is rounded nowhere.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            cells, glance, scores = self.get_image_view(pixel_values)
            own = self.connector.describe.weight.dtype  # float32 where it learns, whatever the tower has
            cells, glance = cells.to(own), glance if glance is None else glance.to(own)
            words = self.connector(cells, glance).softmax(-1)
            if scores is None or not self.config.naming_tokens:
                return words
            return torch.cat([words, self.connector.named(scores.softmax(-1))], dim=1)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size) → visual tokens (batch, visual_tokens, hidden): words in their mixture."""
        embeddings = self.language_model.embed_tokens(self.connector.word_ids)
        return self.get_image_words(pixel_values).to(embeddings.dtype) @ embeddings

    def embed(self, input_ids: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings (batch, length, hidden) with the visual tokens waiting in their slots; None: fill them later."""
        slots = input_ids == self.config.image_token_id
        embeds = self.language_model.embed_tokens(input_ids.masked_fill(slots, 0))
        if visual is None:
            return embeds
        if int(slots.sum()) != visual.shape[0] * visual.shape[1]:
            raise ValueError(
                f"the text holds {int(slots.sum())} image slots but the pictures give "
                f"{visual.shape[0]} x {visual.shape[1]} visual tokens; let the processor write the slots"
            )
        return embeds.masked_scatter(slots.unsqueeze(-1), visual.to(embeds.dtype))

    def forward(
        self,
        input_ids,
        attention_mask=None,
        pixel_values=None,
        position_ids=None,
        cache=None,
        use_cache=None,
        **unused,
    ):
        """Hidden states (batch, length, hidden) after the final norm, first, and the KV cache."""
        seen = cache.get_seq_length() if cache is not None else 0
        visual = self.get_image_features(pixel_values) if pixel_values is not None and not seen else None
        if visual is None and (input_ids == self.config.image_token_id).any():
            raise ValueError(
                "the text holds image slots but no picture came with it; pass pixel_values to the first call"
            )
        if position_ids is None and attention_mask is not None:  # or else padding on the left would shift the text
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return self.language_model(
            inputs_embeds=self.embed(input_ids, visual),
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
        )


def _as_multiplied(module, inputs, angles):
    """Rotary angles in the precision of the products: float32 ones would widen every key, and the KV cache with them."""
    device = angles[0].device.type
    return (
        tuple(a.to(torch.get_autocast_dtype(device)) for a in angles) if torch.is_autocast_enabled(device) else angles
    )


class SmolBridgeForConditionalGeneration(SmolBridgePreTrainedModel, GenerationMixin):
    """SmolBridge with its vocabulary projection (tied to the embeddings)."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: SmolBridgeConfig):
        super().__init__(config)
        self.model = SmolBridgeModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.language_model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.language_model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        position_ids=None,
        cache=None,
        labels=None,
        use_cache=None,
        logits_to_keep: int | torch.Tensor = 0,
        **unused,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, kept, vocabulary); with `labels` (-100 = not supervised) also the mean loss, shifted once."""
        said = self.model(input_ids, attention_mask, pixel_values, position_ids, cache, use_cache)
        hidden, past = said.last_hidden_state, said.cache
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.lm_head(hidden[:, kept] if not isinstance(kept, int) else hidden)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=past)


AutoConfig.register("smolbridge", SmolBridgeConfig)
AutoModel.register(SmolBridgeConfig, SmolBridgeModel)
AutoModelForImageTextToText.register(SmolBridgeConfig, SmolBridgeForConditionalGeneration)
AutoProcessor.register(SmolBridgeConfig, SmolBridgeProcessor)
