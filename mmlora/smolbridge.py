"""SmolBridge: a 150M vision-language model made of two pretrained towers and a trained bridge.

    picture ──► EfficientNet-Lite0 ──► Bridge ──► 24 visual tokens ──┐
    text    ──► SmolLM2's embeddings ──► text tokens ────────────────┴──► SmolLM2 ──► words

Each visual token is a mixture of the decoder's own word embeddings, as in AlignVLM (arXiv 2502.01341): the bridge gives
every word of a small dictionary a probability, so what it reads in a picture can be printed, and the decoder is spoken to
in the language that it knows. It is an ordinary transformers model: `from_pretrained`, `save_pretrained`, `generate`.
"""

from __future__ import annotations

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

IMAGE_TOKEN = "<image>"
CELL = 32  # pixels a side of one cell, the stride of the vision tower's deepest feature map


class SmolBridgeConfig(PreTrainedConfig):
    """The architecture's sizes."""

    model_type = "smolbridge"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_name: str = "tf_efficientnet_lite0"
    image_size: int = 256  # 8 x 8 cells; the tower was trained at 224, and 256 divides into whole cells
    cell_width: int = 160  # numbers that describe a cell: nearly all that differs between pictures
    bridge_width: int = 768  # what is known of a picture, between seeing and saying; small enough to ship in git
    visual_tokens: int = 24  # as many as MiniSQA's longest caption has
    dictionary: int = 512  # words that the bridge can say, padding included; MiniSQA's captions have fewer
    image_token_id: int = 49152  # one past the vocabulary: it has no embedding and is never generated
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **self.text_config})
        super().__post_init__(**kwargs)


def plain_tower(name: str) -> nn.Module:
    """timm's model as published, reporting its feature maps of strides 8, 16 and 32."""
    return timm.create_model(name, features_only=True, out_indices=(2, 3, 4))


def without_norms(tower: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place: a frozen tower computes the same in less time."""
    for module in tower.modules():
        convolution = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d):
                scale = child.weight.detach() * (child.running_var + child.eps).rsqrt()
                convolution.weight.data.mul_(scale[:, None, None, None])
                convolution.bias = nn.Parameter(child.bias.detach() - child.running_mean * scale)
                setattr(module, name, child.act)  # timm's batch norms hold their activation
    return tower


class Bridge(nn.Module):
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
        self.read = nn.Linear(self.side**2 * config.cell_width, config.bridge_width)
        self.write = nn.Linear(config.bridge_width, config.visual_tokens * config.dictionary)
        self.register_buffer("word_ids", torch.arange(config.dictionary))  # the decoder's token of each word

    def cells(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Feature maps → (batch, cells, cell_size), the frozen description the bridge reads."""
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
        self.connector = Bridge(config, channels)
        self.language_model = AutoModel.from_config(config.text_config)
        self.language_model.rotary_emb.register_forward_hook(_as_multiplied)
        self.post_init()

    def train(self, mode: bool = True):
        """The tower is frozen: it stays in evaluation mode even while the rest trains."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def get_image_cells(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size) → cell descriptions (batch, cells, cell_size), before the connector."""
        few = 4 if pixel_values.device.type == "cpu" else len(pixel_values)  # what stays in a processor's cache is faster
        parts = [self.vision_tower(p) for p in pixel_values.to(memory_format=torch.channels_last).split(few)]
        return self.connector.cells([torch.cat(maps).contiguous() for maps in zip(*parts)])

    def get_image_words(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size) → probabilities (batch, visual_tokens, dictionary) of `connector.word_ids`.

        In the weights' own precision even under autocast: what was read is rounded nowhere.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.connector(self.get_image_cells(pixel_values)).softmax(-1)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size) → visual tokens (batch, visual_tokens, hidden): words in their mixture."""
        return self.get_image_words(pixel_values) @ self.language_model.embed_tokens(self.connector.word_ids)

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
        self, input_ids, attention_mask=None, pixel_values=None, position_ids=None, past_key_values=None, use_cache=None,
        **unused,
    ):
        """Hidden states (batch, length, hidden) after the final norm, and the KV cache."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        visual = self.get_image_features(pixel_values) if pixel_values is not None and not seen else None
        if visual is None and (input_ids == self.config.image_token_id).any():
            raise ValueError("the text holds image slots but no picture came with it; pass pixel_values to the first call")
        if position_ids is None and attention_mask is not None:  # or else padding on the left would shift the text
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        output = self.language_model(
            inputs_embeds=self.embed(input_ids, visual), attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache,
        )
        return output.last_hidden_state, output.past_key_values


def _as_multiplied(module, inputs, angles):
    """Rotary angles in the precision of the products: float32 ones would widen every key, and the KV cache with them."""
    device = angles[0].device.type
    return tuple(a.to(torch.get_autocast_dtype(device)) for a in angles) if torch.is_autocast_enabled(device) else angles


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
        self, input_ids=None, attention_mask=None, pixel_values=None, position_ids=None, past_key_values=None,
        labels=None, use_cache=None, logits_to_keep: int | torch.Tensor = 0, **unused,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, kept, vocabulary); with `labels` (-100 = not supervised) also the mean loss, shifted once."""
        hidden, past = self.model(input_ids, attention_mask, pixel_values, position_ids, past_key_values, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.lm_head(hidden[:, kept] if not isinstance(kept, int) else hidden)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)


class SmolBridgeProcessor(ProcessorMixin):
    """Text with `<image>` marks plus pictures → `input_ids`, `attention_mask`, `pixel_values`."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, visual_tokens: int = 24, **kwargs):
        self.visual_tokens = visual_tokens
        self.image_token = IMAGE_TOKEN
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, images=None, text=None, *, padding=False, padding_side=None, return_tensors="pt", **kwargs):
        """`images`: a list of PIL pictures, one for each `<image>` in `text`, in order.

        Raises ValueError when the counts differ. Nothing is ever truncated.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
        marks = sum(t.count(IMAGE_TOKEN) for t in texts)
        if marks != len(pictures):
            raise ValueError(f"the text has {marks} {IMAGE_TOKEN} marks but {len(pictures)} pictures came with it")
        texts = [t.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.visual_tokens) for t in texts]
        data = dict(self.tokenizer(texts, padding=padding, padding_side=padding_side, return_tensors=return_tensors))
        if pictures:
            data["pixel_values"] = self.image_processor(
                [p.convert("RGB") for p in pictures], return_tensors=return_tensors
            )["pixel_values"]
        return BatchFeature(data)

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values"]


AutoConfig.register("smolbridge", SmolBridgeConfig)
AutoModel.register(SmolBridgeConfig, SmolBridgeModel)
AutoModelForImageTextToText.register(SmolBridgeConfig, SmolBridgeForConditionalGeneration)
AutoProcessor.register(SmolBridgeConfig, SmolBridgeProcessor)
