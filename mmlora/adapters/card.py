"""An adapter's model card, as the hub reads it: base, licence, facts, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from peft import PeftModel

from mmlora.adapters.named import own_config
from mmlora.guests import HUB_ID, UNKNOWN_LICENCE
from mmlora.models.base import Base

#: Licences that ask for nothing but their own text: what is made under them may carry the other part's licence.
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0")


def licence_of_both(base: str, data: str) -> str:
    """The licence of an adapter from its base's and its data's, by the hub's names; "other" where it takes a lawyer."""
    if base == data or data in PERMISSIVE:
        return base
    return data if base in PERMISSIVE else UNKNOWN_LICENCE


def card(
    model: PeftModel,
    base: Base,
    facts: Mapping[str, object],
    data_licence: str,
    beside: Sequence[str],
    name: str | None = None,
) -> str:
    """The card's text, of the adapter of this name or of the only one; `beside` names parameters trained besides it."""
    name, config = own_config(model, name)
    size = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n and f".{name}." in f"{n}.")
    rows = {
        "base model": base.name,
        "its revision": base.revision or "–",
        "its weights": f"`{base.weights[:16]}`",
        "rank, alpha, dropout": f"{config.r}, {config.lora_alpha}, {config.lora_dropout}",
        "parameters": f"{size:,}",
        **(
            {"trained beside it": f"{len(beside)} tensors in trained.safetensors, such as {beside[0]}"}
            if beside
            else {}
        ),
        **facts,
        "licence": f"{licence_of_both(base.licence, data_licence)} (base {base.licence}, data {data_licence})",
    }
    front: dict[str, object] = {"library_name": "peft", "license": licence_of_both(base.licence, data_licence)}
    if HUB_ID.fullmatch(base.name):  # the hub links to it
        front["base_model"] = base.name
    head = [f"{key}: {json.dumps(value)}" for key, value in sorted(front.items())]
    lines = [
        *("---", *head, "tags: [lora, image-text-to-text]", "---"),
        *(f"# LoRA adapter for {base.name}", ""),
        *(
            "A low-rank adapter for a vision-language model, trained with mmlora.",
            "",
            "## Facts",
            "",
            "| | |",
            "|---|---|",
        ),
        *(f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items()),
        *(
            "",
            "## Use",
            "",
            "```python",
            "from mmlora import load_vlm",
            "",
            "vlm = load_vlm(folder)  # the base with this adapter",
        ),
        *("```", ""),
    ]
    return "\n".join(lines)
