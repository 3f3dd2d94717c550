"""What should the small CLIP of lesson 09 look at? Ways to join its towers, scored on what the lesson never scores.

    python benchmarks/clip_heads.py       # writes results/openclip/heads.json

Trained on the five hands without the lesson's kept-out names and without 200 more; scored on the hand `fxemoji`, which draws
few hundred of the names. `known`: top-1 among all names. `new`: those 200 more among 20. Each once as the picture is, and
once as the mean with its mirror image.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import copy
import json

import torch
import typer
from PIL import ImageOps
from timm.layers import Mlp
from torch import nn
from torch.nn.functional import normalize

from mmlora.openclip import drawings, scores, train
from mmlora.openclip.assemble import EMBED, Clip, assembled
from mmlora.paths import RESULTS
from mmlora.reporting import machine

OUT = 200  # names kept out by the lesson, and again as many kept out here
STAGES = (40, 112, 320)  # channels of the tower's three maps: its features are mean, maximum, four quarters of each
VIEWS = (1, 3, 5)  # altered copies of each picture


def main(seed: int = 0):
    """Train a projection for each way and write the record."""
    state, clip = machine.git_state(), assembled()
    names = [d.name for d in drawings.drawings(drawings.TEST)]  # its names; its pictures are not looked at
    place = {name: i for i, name in enumerate(names)}
    never = set(drawings.kept_out(names, OUT))
    new = set(drawings.kept_out(set(names) - never, OUT, seed=1))
    lessons = [d for hand in drawings.TRAIN for d in drawings.drawings(hand) if d.name in set(names) - never - new]
    asked = [d for d in drawings.drawings(drawings.VALIDATION) if d.name in set(names) - never]
    seen = train.trunk_features(clip, [d.image for d in lessons], max(VIEWS), seed)
    shown = torch.cat([train.trunk_features(clip, [f(d.image) for d in asked]) for f in (lambda i: i, ImageOps.mirror)])
    said, owner = train.sentence_features(clip, names), torch.tensor([place[d.name] for d in lessons])
    texts, right = normalize(said.mean(0), dim=-1), torch.tensor([place[d.name] for d in asked])
    is_new = torch.tensor([d.name in new for d in asked])
    ways = {}
    for quarters in (False, True):
        for views in VIEWS:
            part = columns(quarters)
            head = _trained(clip, seen[: 1 + views, :, part], owner, said, seed)
            with torch.inference_mode():
                found = normalize(head(shown[:, :, part]), dim=-1)
            for both, pictures in ((False, found[0]), (True, normalize(found.sum(0), dim=-1))):
                known = scores.top(pictures[~is_new], texts, right[~is_new])
                fresh = scores.among(pictures[is_new], texts[right[is_new]])
                ways[f"quarters {quarters}, views {views}, mirrored {both}"] = {
                    key: {"accuracy": share.accuracy, "ci95": share.ci95, "n": share.n}
                    for key, share in (("known", known), ("new", fresh))
                }
    settings = {**vars(train.Heads()), "seed": seed, "hand": drawings.VALIDATION, "pictures": len(lessons)}
    target = RESULTS / "openclip" / "heads.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"settings": settings, "ways": ways, **machine.circumstances(state)}, indent=1) + "\n")
    print(json.dumps(ways, indent=1), f"-> {target}")


def columns(quarters: bool) -> torch.Tensor:
    """Places of the tower's features, with or without the means of the maps' quarters."""
    kept = [torch.tensor([True, True, *[quarters] * 4]).repeat_interleave(width) for width in STAGES]
    return torch.cat([*kept, torch.ones(1280, dtype=torch.bool)]).nonzero()[:, 0]


def _trained(clip: Clip, seen: torch.Tensor, owner: torch.Tensor, said: torch.Tensor, seed: int) -> nn.Module:
    """A projection as open_clip makes it, for features (views, pictures, width), trained."""
    own = copy.deepcopy(clip.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own.visual.head = nn.Sequential(Mlp(seen.shape[-1], 2 * EMBED, EMBED, bias=(True, False)))
    train.train_heads(clip._replace(model=own), seen, owner, said, seed=seed)
    return own.visual.head.eval()


if __name__ == "__main__":
    typer.run(main)
