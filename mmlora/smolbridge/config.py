"""SmolBridge's sizes."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class SmolBridgeConfig(PreTrainedConfig):
    """The architecture's sizes."""

    model_type = "smolbridge"
    sub_configs = {"text_config": AutoConfig}

    text_config: Any = None  # a PreTrainedConfig, made of the dict that a file holds
    vision_name: str = "tf_efficientnet_lite0"
    image_size: int = 256  # 8 x 8 cells; the tower was trained at 224, and 256 divides into whole cells
    cell_width: int = 160  # numbers that describe a cell: nearly all that differs between pictures
    connector_width: int = 768  # what is known of a picture, between seeing and saying; small enough to ship in git
    visual_tokens: int = 24  # as many as MiniSQA's longest caption has
    dictionary: int = 512  # words that the connector can say, padding included; MiniSQA's captions have fewer
    spelling: int = 0  # numbers that a visual token is made of before it is words: thousands of words need few; 0: none
    glance_width: int = (
        0  # numbers that are known from a glance at the whole picture, wherever things are in it; 0: none
    )
    naming_tokens: int = 0  # the last visual tokens, which say what the tower's own ImageNet classifier would
    image_token_id: int = 49152  # one past the vocabulary: it has no embedding and is never generated
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **self.text_config})
        super().__post_init__(**kwargs)
