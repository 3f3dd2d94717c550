"""Make SmolBridge's connector that sees the world: align it on things by several hands, scenes, words, numbers, plots.

    python -m tools.align_world --pictures 48000

Needs resvg-py and the npm index, where the icon sets come from, and for its photographs scikit-learn and scikit-image. None of
the pictures comes from MiniSQA's drawing code or from its icons. Writes `connector.safetensors` and `align.json`, the log and what is read of hands and names held out whole, to `out`.
"""

from __future__ import annotations

import importlib
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

from mmlora.files import sha256_of_all
from mmlora.models.vlm import VLM, load_base
from mmlora.paths import RUNS, WEIGHTS
from mmlora.reporting import machine
from mmlora.smolbridge.align import ReadSettings, fitting, look, read, say, spell
from mmlora.smolbridge.assemble import assembled, packed, unpacked
from mmlora.smolbridge.connector import Connector
from mmlora.smolbridge.words import words_read
from tools.world.hands import HANDS, Thing, things
from tools.world.scenes import Shown, World, scenes, thing

SIZES = {"connector_width": 384, "spelling": 96, "glance_width": 1024, "naming_tokens": 4}  # 11 MB in git
READING = ReadSettings(
    cell_dropout=0.6, dropout=0.35
)  # searched on the hand that validates: less learns hands by heart
BLOCK = 250  # pictures that a process draws at a time
#: Photographs that packages ship, none of which was learned from: where they lie and which those are.
PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        ("astronaut.png", "camera.png", "cat.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg"),
    ),
    "matplotlib": ("mpl-data/sample_data", ("grace_hopper.jpg",)),
}
UNSEEN = 60  # names that are kept out of learning: what is said of a thing that was never seen?


@cache  # each process reads the hands once
def parts(folder: Path) -> tuple[World, dict[str, list[Thing]], list[str]]:
    """What is learned from, all drawings by name, and the names that are kept out of learning."""
    by_name = things(folder)
    kept_out = sorted(random.Random(0).sample(sorted(by_name), UNSEEN))
    learned = {n: [t for t in drawn if t.hand.use == "learn"] for n, drawn in by_name.items() if n not in kept_out}
    return World(learned), by_name, kept_out


def draw(block: int, seed: int, folder: Path) -> list[Shown]:
    """One block of scenes, in a process of its own."""
    return list(scenes(parts(folder)[0], BLOCK, seed + block))


def ahead(drawing: Callable[[int], list[Shown]], blocks: int) -> Iterator[list[Shown]]:
    """Blocks in order, drawn by two processes a few blocks ahead: a block is 50 MB."""
    with ProcessPoolExecutor(2) as pool:
        waiting = deque(pool.submit(drawing, block) for block in range(min(4, blocks)))
        for block in range(len(waiting), blocks + len(waiting)):
            yield waiting.popleft().result()
            if block < blocks:
                waiting.append(pool.submit(drawing, block))


def drawn(vlm: VLM, count: int, seed: int, work: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """What the connector sees of `count` scenes, their captions and kinds; kept in `work` and used again."""
    code = sha256_of_all(sorted(Path(__file__).with_name("world").glob("*.py")))[:12]
    folder = work / f"scenes-{seed}-{count}-{code}"
    file, connector, texts = folder / "captions.json", vlm.model.model.connector, []
    settled = {name: getattr(connector, name) for name in ("usual", "spread")}
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)

        def pictures() -> Iterator:
            for block in ahead(partial(draw, seed=seed, folder=work / "hands"), -(-count // BLOCK)):
                for shown in block:
                    texts.append((shown.caption, shown.kind))
                    yield shown.image

        look(vlm, islice(pictures(), count), folder / "seen.f16", count, fresh=True)
        save_file({**connector.describe.state_dict(), **settled}, folder / "describe.safetensors")
        file.write_text(json.dumps(texts[:count]))
    tensors = load_file(folder / "describe.safetensors")
    for name, tensor in settled.items():
        tensor.copy_(tensors.pop(name))
    connector.describe.load_state_dict(tensors)
    captions, kinds = zip(*json.loads(file.read_text()))
    seen = np.memmap(folder / "seen.f16", np.float16, "r", shape=(count, connector.seen_size))
    return seen, list(captions), list(kinds)


def spaced(text: str) -> str:
    """As inside a sentence: so a word has the same tokens wherever it stands."""
    return f" {text}"


def imagenet_names(tokenizer: Any, tokens: int) -> list[list[int]]:
    """The tokens of ImageNet's thousand names, the first of several, silence after the end, cut after `tokens`."""
    said = [ImageNetInfo().index_to_description(i).split(",")[0] for i in range(1000)]
    silence = tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows = tokenizer([spaced(name) for name in said], add_special_tokens=False)["input_ids"]
    return [(row + silence * tokens)[:tokens] for row in rows]


@torch.inference_mode()
def ranked(connector: Connector, seen: np.ndarray, right: list[int], spelled: torch.Tensor) -> dict[str, Any]:
    """How many pictures' right name (a row of `spelled`) is the likeliest of all names, and among the likeliest three."""
    scores = say(connector, seen).log_softmax(-1)
    chances = torch.stack([part[range(spelled.shape[1]), spelled].sum(-1) for part in scores])
    first = chances.topk(3).indices
    hits = first == torch.tensor(right)[:, None]
    return {"pictures": len(right), "first": int(hits[:, 0].sum()), "among_three": int(hits.any(1).sum())}


def hand_pictures(by_name: dict[str, list[Thing]], hand: str, names: list[str]) -> list[tuple[str, Shown]]:
    """Each of these names as this hand draws it, large and in the middle."""
    found = []
    for name in names:
        for each in by_name[name]:
            if each.hand.name == hand:
                found.append((name, thing(World({name: [each]}), random.Random(name), name)))
    return found


def align(
    pictures: Annotated[int, typer.Option(help="scenes to learn from, 20 to 60 a second")] = 48_000,
    seed: Annotated[int, typer.Option(help="of the scenes")] = 1,
    out: Path = WEIGHTS / "smolbridge-world",
    work: Path = RUNS / "align-world",
):
    """Align the connector on scenes of the world; connector.safetensors and align.json go to `out`."""
    settings, state = READING, machine.git_state()
    vlm = load_base(assembled(connector=None, **SIZES))
    tokenizer = vlm.processor.tokenizer
    seen, captions, kinds = drawn(vlm, pictures, seed, work)
    _, by_name, kept_out = parts(work / "hands")
    names = sorted(by_name)
    labels = imagenet_names(tokenizer, SIZES["naming_tokens"])
    words, spelled, names_spelled, labels_placed = spelling(tokenizer, captions, names, labels)
    connector = fitting(vlm.model, words, spelled.shape[1], labels_placed)
    log = read(connector, seen, spelled, settings)
    tensors = packed(connector.state_dict())
    connector.load_state_dict(unpacked(tensors))  # what is measured is what ships
    vlm.model.model.connector = connector
    held = say(connector, seen[: settings.held_out]).argmax(-1)
    right = (held == spelled[: settings.held_out]).all(-1).tolist()
    record = {
        "pictures": pictures,
        "seed": seed,
        "words": len(words),
        "names": len(names) - len(kept_out),
        "settings": asdict(settings),
        "hands": {hand.name: [hand.version, hand.use] for hand in HANDS},
        "log": log,
        "held_out_scenes": {
            kind: [sum(r for r, k in zip(right, kinds) if k == kind), kinds[: settings.held_out].count(kind)]
            for kind in sorted(set(kinds))
        },
        "held_out_hands": {},
        **machine.circumstances(state),
    }
    places = {name: at for at, name in enumerate(names)}
    for hand in (each.name for each in HANDS if each.use != "learn"):
        shown = hand_pictures(by_name, hand, [name for name in names if name not in kept_out])
        looked = look(vlm, (picture.image for _, picture in shown), work / f"{hand}.f16", len(shown))
        record["held_out_hands"][hand] = ranked(connector, looked, [places[name] for name, _ in shown], names_spelled)
        print(hand, record["held_out_hands"][hand], flush=True)
    record["photographs"] = photographs(vlm)
    record["never_seen"] = never_seen(vlm, hand_pictures(by_name, "twemoji", kept_out), work)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "connector.safetensors")
    (out / "align.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def spelling(
    tokenizer: Any, captions: list[str], names: list[str], labels: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The dictionary; and captions, all names (those kept out too) and ImageNet's names as places in it."""
    _, together = words_of(tokenizer, [spaced(text) for text in (*captions, *names)])
    dictionary = torch.cat([together.flatten(), torch.tensor(labels).flatten()]).unique()
    places = torch.searchsorted(dictionary, together)
    return (
        dictionary,
        places[: len(captions)],
        places[len(captions) :],
        torch.searchsorted(dictionary, torch.tensor(labels)),
    )


def words_of(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `spell`, but the captions as tokens of the decoder instead of places."""
    words, spelled = spell(tokenizer, texts)
    return words, words[spelled]


@torch.inference_mode()
def never_seen(vlm: VLM, shown: list[tuple[str, Shown]], work: Path) -> list[dict[str, str]]:
    """What is said of things that no learned picture shows, beside what they are."""
    connector, tokenizer = vlm.model.model.connector, vlm.processor.tokenizer
    looked = look(vlm, (picture.image for _, picture in shown), work / "never-seen.f16", len(shown))
    said = connector.word_ids[say(connector, looked).argmax(-1)]
    return [{"is": name, "said": tokenizer.decode(row).strip()} for (name, _), row in zip(shown, said)]


@torch.inference_mode()
def photographs(vlm: VLM) -> list[dict[str, str]]:
    """What the visual tokens say of each of `PHOTOGRAPHS`, and what the last of them, ImageNet's name, say."""
    found = []
    for package, (folder, files) in PHOTOGRAPHS.items():
        for file in files:
            path = Path(importlib.import_module(package).__file__).parent / folder / file
            if path.is_file():
                words = [word for word, _ in words_read(vlm, Image.open(path))]
                said = vlm.model.model.connector.said
                found.append({"file": f"{package}/{file}", "said": "".join(words[:said]).strip(),
                              "imagenet": "".join(words[said:]).strip()})  # fmt: skip
    return found


if __name__ == "__main__":
    typer.run(align)
