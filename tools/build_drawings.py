"""Make data/drawings/ once from its sources: the same things drawn by several hands. For maintainers, with resvg-py.

    python -m tools.build_drawings FOLDER

FOLDER holds the unpacked npm packages @iconify-json/HAND, each under its hand's name (`npm pack @iconify-json/noto`, and so
on). Each becomes one zip: `alarm clock.webp` and so on, and `info.json` with its licence. See data/drawings/LICENSES.md.
"""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import resvg_py
from PIL import Image

from mmlora.paths import DATA

HANDS = ("noto", "noto-v1", "twemoji", "emojione", "fluent-emoji-flat", "fxemoji", "openmoji")
FEWEST = 4  # of the other hands must have drawn a name as well
SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
SIDE, QUALITY = 96, 80  # pixels and WebP's quality: two to three thousand bytes a picture
#: Variants of one thing: sexes, colours of skin, hours, countries.
SKIPPED = re.compile(
    r"skin|tone|flag|keycap|letter|oclock|thirty|regional|\d|^(wo)?m[ae]n-|^family|^mx-|^kiss-|^couple-|facing|input-|parts"
    r"|^people-"
)


def drawings_in(icons: dict, skipped: re.Pattern = SKIPPED) -> dict[str, str]:
    """A package's icons.json → SVG by name, hyphens between its words, aliases too, without what is skipped."""
    drawings = {}
    for name in (*icons["icons"], *icons.get("aliases", {})):
        icon = icons["icons"].get(name) or icons["icons"].get(icons["aliases"][name]["parent"])
        if icon and not skipped.search(name):
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            drawings[name] = f'<svg {SPACES} viewBox="{box}">{icon["body"]}</svg>'
    return drawings


def load(folder: Path) -> tuple[dict[str, str], dict]:
    """A hand's drawings and what its package says of itself."""
    icons, info = (json.loads((folder / f"{part}.json").read_text()) for part in ("icons", "info"))
    return drawings_in(icons), info


def painted(svg: str, side: int) -> Image.Image:
    """The drawing as RGBA of at most `side` pixels."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def rendered(svg: str) -> bytes:
    """The drawing on white as WebP of `SIDE` pixels."""
    drawn = painted(svg, SIDE)
    paper, out = Image.new("RGB", (SIDE, SIDE), "white"), io.BytesIO()
    paper.paste(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2), drawn)
    paper.save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def main(folder: Path) -> None:
    """Write one zip for each hand, with the names that `FEWEST` hands and openmoji share."""
    hands = {hand: load(folder / hand) for hand in HANDS}
    squeezed = {name.replace("-", ""): name for name in hands["openmoji"][0]}  # fxemoji writes alarmclock
    hands["fxemoji"] = {squeezed.get(n, n): svg for n, svg in hands["fxemoji"][0].items()}, hands["fxemoji"][1]
    names = [n for n in squeezed.values() if sum(n in drawn for drawn, _ in hands.values()) > FEWEST]
    (DATA / "drawings").mkdir(exist_ok=True)
    for hand, (drawn, info) in hands.items():
        facts = {"hand": hand, "licence": info["license"]["spdx"], "author": info["author"]["name"],
                 "source": info["author"]["url"], "package": f"@iconify-json/{hand}"}  # fmt: skip
        with zipfile.ZipFile(DATA / "drawings" / f"{hand}.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("info.json"), json.dumps(facts, indent=1) + "\n")
            for name in sorted(set(names) & set(drawn)):
                archive.writestr(zipfile.ZipInfo(f"{name.replace('-', ' ')}.webp"), rendered(drawn[name]))
        print(hand, len(set(names) & set(drawn)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
