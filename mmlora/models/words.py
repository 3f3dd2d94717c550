"""Checks while loading, before anything is encoded, that a processor's tokenizer and chat template fit the model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from mmlora.errors import MMLoraError, on_one_line

TURN = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


class TokenizerError(MMLoraError):
    """A tokenizer or chat template that the model cannot be used with; the message says why and what to do."""


def refuse_unfit(name: str, model: PreTrainedModel, processor: Any) -> None:
    """Raise `TokenizerError` if the tokenizer has more tokens than the model has embeddings, if it has no end token, or if
    the chat template cannot write a turn.

    Only the placeholder of a picture may have no embedding: it is never looked up.
    """
    tokenizer, rows = processor.tokenizer, model.get_input_embeddings().num_embeddings
    slots = {getattr(owner, "image_token_id", None) for owner in (processor, tokenizer)}
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows and i not in slots}
    if beyond:
        raise TokenizerError(
            f"the tokenizer of {name} has {len(beyond)} tokens beyond the model's {rows} embeddings, such as "
            f"{beyond[max(beyond)]!r} ({max(beyond)}); give the tokenizer that the model was made with, or a model whose "
            "embeddings were resized for it"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer of {name} has no end token, so no reply would end; set eos_token in its tokenizer_config.json"
        )
    if not processor.chat_template:
        return
    try:
        processor.apply_chat_template(TURN, add_generation_prompt=True)
    except Exception as error:  # Jinja's own, or whatever the template's functions raise
        said = on_one_line(error)
        raise TokenizerError(
            f"the chat template of {name} cannot write a user's turn ({said}); fix its chat template file, or choose "
            "another model"
        ) from error
