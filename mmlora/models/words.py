"""Whether a processor's tokenizer and chat template go with a model: told while loading, before anything is encoded."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from mmlora.errors import MMLoraError

TURN = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


class TokenizerError(MMLoraError):
    """A tokenizer or chat template that the model cannot be used with; the message says why and what to do."""


def refuse_unfit(name: str, model: PreTrainedModel, processor: Any) -> None:
    """Raise `TokenizerError` where the tokenizer knows more tokens than the model has embeddings, has no end token, or where
    the chat template cannot write a turn.

    The placeholder of a picture alone may lie beyond the embeddings: it is never looked up.
    """
    tokenizer, rows = processor.tokenizer, model.get_input_embeddings().num_embeddings
    slots = {getattr(owner, "image_token_id", None) for owner in (processor, tokenizer)}
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows and i not in slots}
    if beyond:
        raise TokenizerError(
            f"the tokenizer of {name} has {len(beyond)} tokens that its {rows} embeddings do not reach, such as "
            f"{beyond[max(beyond)]!r} ({max(beyond)}); give the tokenizer that the model was made with, or a model whose "
            "embeddings were resized for it"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer of {name} has no end token, so that no reply would end; set eos_token in its tokenizer_config.json"
        )
    if not processor.chat_template:
        return
    try:
        processor.apply_chat_template(TURN, add_generation_prompt=True)
    except Exception as error:  # Jinja's own, or whatever the template's functions raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise TokenizerError(
            f"the chat template of {name} cannot write a user's turn ({said}); mend its chat template file, or take "
            "another model"
        ) from error
