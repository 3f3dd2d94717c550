"""The same things drawn by several hands: icon sets with names, fetched from the npm index and drawn by resvg.

Each package @iconify-json/HAND holds a whole set as SVG bodies with names and its licence. Noto's icons, which MiniSQA
is drawn with, are learned from in no version.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from tools.build_drawings import SKIPPED, drawings_in, painted

INDEX = "https://registry.npmjs.org/@iconify-json"
LEFT_OUT = re.compile(f"{SKIPPED.pattern}|-(dark|medium|light)$")  # these hands have colours of skin without the word
FEWEST = 3  # hands that have drawn a name, among those that are learned from; rarer ones are mostly spellings


@dataclass(frozen=True)
class Hand:
    """An icon set: who drew it, and what it may be used for."""

    name: str
    version: str
    use: str  # "learn", "validate" or "test"
    plain: bool = False  # drawn in one colour, which can then be any


HANDS = (
    Hand("twemoji", "1.2.5", "learn"),
    Hand("emojione", "1.2.3", "learn"),
    Hand("emojione-monotone", "1.2.1", "learn", plain=True),
    Hand("fluent-emoji-flat", "1.2.6", "learn"),
    Hand("fluent-emoji", "1.2.7", "learn"),
    Hand("fluent-emoji-high-contrast", "1.2.6", "learn", plain=True),
    Hand("fxemoji", "1.2.2", "learn"),
    Hand("streamline-emojis", "1.2.4", "learn"),
    Hand("game-icons", "1.2.4", "learn", plain=True),
    Hand("mdi", "1.2.3", "learn", plain=True),
    Hand("noto-v1", "1.2.5", "validate"),  # what MiniSQA's icons were years ago: looked at, never learned from
    Hand("openmoji", "1.2.29", "test"),  # CC BY-SA 4.0
)


@dataclass(frozen=True)
class Thing:
    """One drawing: `svg` with the colour of a plain hand left open as currentColor."""

    name: str
    hand: Hand
    svg: str


def fetch(hand: Hand, folder: Path) -> Path:
    """The unpacked package of a hand, downloaded and verified against the index's own hash at the first call.

    Raises OSError without network, ValueError on a wrong hash.
    """
    target = folder / f"{hand.name}-{hand.version}.json"
    if target.is_file():
        return target
    with urlopen(f"{INDEX}/{hand.name}/{hand.version}") as answer:
        dist = json.load(answer)["dist"]
    with urlopen(dist["tarball"]) as answer:
        data = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != dist["integrity"]:
        raise ValueError(f"{hand.name} {hand.version} has another hash than the index says; fetch it again")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        parts = {part: json.load(archive.extractfile(f"package/{part}.json")) for part in ("icons", "info")}  # type: ignore[arg-type]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(parts))
    return target


@lru_cache
def drawn(hand: Hand, folder: Path) -> tuple[dict[str, str], dict]:
    """A hand's drawings as SVG by name without hyphens between its words, and what its package says of itself."""
    parts = json.loads(fetch(hand, folder).read_text())
    return drawings_in(parts["icons"], LEFT_OUT), parts["info"]


def things(folder: Path) -> dict[str, list[Thing]]:
    """Every name that `FEWEST` learned hands share, with each drawing of it: "alarm clock" by hand after hand."""
    spelled: dict[str, str] = {}
    for hand in HANDS:
        for name in drawn(hand, folder)[0]:
            key = name.replace("-", "")  # fxemoji writes alarmclock
            spelled[key] = max(name, spelled.get(key, ""), key=lambda n: n.count("-"))
    found: dict[str, dict[str, Thing]] = {}
    for hand in HANDS:
        for name, svg in drawn(hand, folder)[0].items():
            name = spelled[name.replace("-", "")].replace("-", " ")
            found.setdefault(name, {})[hand.name] = Thing(name, hand, svg)
    learned = {hand.name for hand in HANDS if hand.use == "learn"}
    counts = Counter({name: len(learned & by.keys()) for name, by in found.items()})
    return {name: list(found[name].values()) for name in sorted(found) if counts[name] >= FEWEST}


def render(thing: Thing, side: int, colour: str = "black") -> Image.Image:
    """The drawing as RGBA of at most `side` pixels; a plain hand's in `colour`."""
    return painted(thing.svg.replace("currentColor", colour), side)
