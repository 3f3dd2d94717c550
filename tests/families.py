"""Tiny random models of the architectures that mmlora supports, each with its real processor class.

Sizes are scaled down and nothing else: the layers, the masks, the positions and the way pictures become tokens are the
architecture's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tinyvlm import END, START, STOP, tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    PaliGemmaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmlora.models.vlm import VLM, TextProcessor

MEAN, STD = [0.5] * 3, [0.5] * 3
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
    "max_position_embeddings": 2048,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def template(
    picture: str, user: str = "user", assistant: str = "assistant", space: str = "\n", stop: str = STOP
) -> str:
    """A chat template in the manner of the family: how a picture is marked, how the speakers are called."""
    return (
        "{% for m in messages %}"
        + START
        + "{{ {'user': '"
        + user
        + "', 'assistant': '"
        + assistant
        + "'}[m.role] }}"
        + space
        + "{% for part in m.content %}{{ '"
        + picture
        + "' if part.type == 'image' else part.text }}{% endfor %}"
        + stop
        + "\n{% endfor %}{% if add_generation_prompt %}"
        + START
        + assistant
        + space.rstrip(" ")
        + "{% endif %}"
    )


def words(*special: str):
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>", *special]})
    return made


def idefics(kind: str):
    """SmolVLM-256M and 500M are Idefics3 models; SmolVLM2 has a class of its own. Large pictures are cut into tiles."""

    def build():
        cells = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
        text = words("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells)
        text.eos_token = "<end_of_utterance>"
        sizes = {
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 32},
            "image_mean": MEAN,
            "image_std": STD,
        }
        chat = template("<image>", "User", "Assistant", ": ", "<end_of_utterance>")
        if kind == "idefics3":
            processor = Idefics3Processor(Idefics3ImageProcessor(**sizes), text, image_seq_len=4, chat_template=chat)
        else:
            processor = SmolVLMProcessor(
                SmolVLMImageProcessor(**sizes), text, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=chat
            )
        config = AutoConfig.for_model(
            kind,
            scale_factor=2,
            image_token_id=processor.image_token_id,
            vision_config=VISION,
            text_config={"model_type": "llama", "vocab_size": len(text), "pad_token_id": 0, **TEXT},
        )
        return config, processor

    return build


def qwen(kind: str, processor_class, video_class, vision: dict):
    """Pictures keep their shape: more pixels, more tokens, each with a place in two dimensions."""

    def build():
        text = words("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        chat = template("<|vision_start|><|image_pad|><|vision_end|>")
        pictures = Qwen2VLImageProcessor(
            patch_size=8,
            merge_size=2,
            size={"shortest_edge": 256, "longest_edge": 2048},
            image_mean=MEAN,
            image_std=STD,
        )
        processor = processor_class(pictures, text, video_class(), chat_template=chat)
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
        tokens = {n: text.convert_tokens_to_ids(f"<|{n}|>") for n in ("vision_start", "vision_end")}
        config = AutoConfig.for_model(
            kind,
            image_token_id=processor.image_token_id,
            video_token_id=processor.video_token_id,
            **{f"{n}_token_id": i for n, i in tokens.items()},
            text_config={
                "vocab_size": len(text),
                "rope_parameters": rope,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **TEXT,
            },
            vision_config={
                "depth": 4,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 4,
                "patch_size": 8,
                "out_hidden_size": 32,
                "initializer_range": 0.1,
                **vision,
            },
        )
        return config, processor

    return build


def llava():
    text = words()
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        pictures,
        text,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n", space=" ", stop=" "),
    )
    config = AutoConfig.for_model(
        "llava",
        image_token_index=processor.image_token_id,
        vision_feature_layer=-2,
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 32},
        text_config={"model_type": "llama", "vocab_size": len(text), "pad_token_id": 0, **TEXT},
    )
    return config, processor


def paligemma():
    """The prompt is read in both directions, logits are capped, and there is no chat template."""
    text = words()
    pictures = SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, text)
    config = AutoConfig.for_model(
        "paligemma",
        image_token_index=processor.image_token_id,
        vocab_size=len(text),
        hidden_size=32,
        projection_dim=32,
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={
            "model_type": "gemma2",
            "vocab_size": len(text),
            "query_pre_attn_scalar": 8,
            "sliding_window": 24,
            "final_logit_softcapping": 3.0,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **TEXT,
        },
    )
    return config, processor


def text_only(kind: str = "llama", **options):
    """A language model; `options` are the architecture's own."""

    def build():
        words_only = words()
        chat = (
            "{% for m in messages %}" + START + "{{ m.role }}\n{{ m.content }}" + STOP + "\n{% endfor %}"
            "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
        )
        words_only.chat_template = chat
        config = AutoConfig.for_model(kind, **{"vocab_size": len(words_only), "pad_token_id": 0, **TEXT, **options})
        return config, TextProcessor(words_only)

    return build


@dataclass(frozen=True)
class Family:
    build: Callable
    first: int  # the layer that the adapter begins at
    sees: bool = True


FAMILIES = {
    "smolvlm": Family(idefics("idefics3"), 2),
    "smolvlm2": Family(idefics("smolvlm"), 2),
    "qwen2.5-vl": Family(
        qwen(
            "qwen2_5_vl",
            Qwen2_5_VLProcessor,
            Qwen2VLVideoProcessor,
            {"fullatt_block_indexes": [1, 3], "window_size": 32},
        ),
        2,
    ),
    "qwen3-vl": Family(
        qwen(
            "qwen3_vl",
            Qwen3VLProcessor,
            Qwen3VLVideoProcessor,
            {"deepstack_visual_indexes": [1, 2], "num_position_embeddings": 64},
        ),
        2,
    ),
    "llava-1.5": Family(llava, 2),
    "paligemma2": Family(paligemma, 2),
    "text-only": Family(text_only(), 2, sees=False),
}


def build(name: str, family: Family | None = None) -> VLM:
    """The model in evaluation mode, float32."""
    family = family or FAMILIES[name]
    config, processor = family.build()
    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if family.sees else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # as large as in a trained model, so that what is seen changes what is said
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.convert_tokens_to_ids(END)
    return VLM(name, model, processor)


def save(vlm: VLM, folder: Path) -> Path:
    """The model and its processor in a folder, as `load_base` takes it."""
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder
