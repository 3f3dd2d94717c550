"""A tiny random SmolBridge that reads real text, and problems for it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast, ViTImageProcessor

from mmlora.models.vlm import VLM
from mmlora.problems.record import Problem
from mmlora.smolbridge.assemble import CHAT_TEMPLATE
from mmlora.smolbridge.model import SmolBridgeConfig, SmolBridgeForConditionalGeneration
from mmlora.smolbridge.processor import SmolBridgeProcessor

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = "user assistant Question: Options: Context: The answer is Which colour has the left square? red green blue"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text comes back as it was; SmolLM2's special tokens and the image mark at the end."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=300,
            min_frequency=1,
            special_tokens=[END, START, STOP],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=END, bos_token=START, eos_token=STOP, additional_special_tokens=["<image>"]
    )


def build(**sizes) -> VLM:
    """The model in evaluation mode: four layers, pictures of 128 x 128 as four tokens; `sizes` of its configuration."""
    words = tokenizer()
    mark = words.convert_tokens_to_ids("<image>")
    text = AutoConfig.for_model(
        "llama",
        vocab_size=mark,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.1,  # strong enough that every layer changes the outcome
    )
    config = SmolBridgeConfig(
        text_config=text,
        image_size=128,
        cell_width=16,
        connector_width=64,
        **{"visual_tokens": 4, "dictionary": 40, **sizes},
        image_token_id=mark,
    )
    torch.manual_seed(0)
    model = SmolBridgeForConditionalGeneration(config).eval()
    model.model.connector.write.weight.data *= 30  # as sure of its words as a trained one
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    pictures = ViTImageProcessor(size={"height": 128, "width": 128}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return VLM("tiny", model, SmolBridgeProcessor(pictures, words, CHAT_TEMPLATE, visual_tokens=config.visual_tokens))


def picture(left: str, right: str = "white", size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Two squares side by side."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((5, 10, size[0] // 2 - 5, size[1] - 10), fill=left)
    draw.rectangle((size[0] // 2 + 5, 10, size[0] - 5, size[1] - 10), fill=right)
    return image


PROBLEMS = (
    Problem(
        "left",
        "Which colour has the left square?",
        ("red", "green", "blue"),
        0,
        picture("red", "blue"),
        solution="The left square is red.",
    ),
    Problem("text", "Which is a colour?", ("seven", "green"), 1, hint="Colours are seen.", solution="Green is seen."),
    Problem("right", "Right square?", ("red", "olive green"), 1, picture("red", "olive"), solution="Olive."),
    Problem("plain", "Is blue a colour?", ("yes", "no"), 0),
)
