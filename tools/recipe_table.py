"""Render the tables of docs/recipe.md from results/; what has no file reads "not measured yet"."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from mmlora.evaluation.scores import Prediction, compare, load_predictions
from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import UNMEASURED, interval, markdown
from tools.readme import render_readme

#: The rows that are asked for: name of the file in results/recipe/ → how it differs from the first.
ROWS = {
    "shipped": "explanation then answer, LoRA from layer 15, rank 16, rate 2e-3, batches of 8",
    "rate-4e-3": "learning rate 4e-3",
    "rank-4": "rank 4",
    "rank-64": "rank 64",
    "answer-only": "answer alone, scored by likelihood",
}
#: The same of results/earlier/recipe/, on the easier base and on the test split.
EARLIER = {
    "shipped": "explanation then answer, 24 visual tokens, LoRA from layer 15, rank 16, rate 2e-3",
    "answer-only": "answer alone, scored by likelihood",
    "answer-explanation": "answer, then explanation; scored by likelihood",
    "lora-0": "LoRA from layer 0: nothing of the decoder is cached",
    "lora-10": "LoRA from layer 10",
    "lora-20": "LoRA from layer 20",
    "entry-20": "visual tokens enter at layer 20, LoRA begins there",
    "tokens-12": "the first 12 visual tokens only",
    "bridge-trained": "the connector trains too: nothing is cached, adapters of two runs no longer stack",
    "rank-4": "rank 4",
    "rank-64": "rank 64",
    "rate-1e-3": "learning rate 1e-3",
    "rate-4e-3": "learning rate 4e-3",
}
#: The rows of results/without_captions/: what the connector learns from.
UNCAPTIONED = {
    "captions": "the captions, first (for comparison)",
    "solutions": "the first sentence of each solution, first",
    "together": "the answers, together with the adapter, at a tenth of its rate",
    "neither": "nothing: it stays as the base has it",
}
#: The rows of results/recipe/batch/, a table for each seed: samples a step.
BATCHES = [{f"{size}-{seed}": f"batches of {size}" for size in (8, 4)} for seed in (0, 1)]
HOUR = "one_hour_smolbridge"
HEADER = ("recipe", "what differs", "samples seen", "minutes", "accuracy (95 % interval)", "IMG")
LAST, PAIRED = "blank", "more than {} (paired: 95 % interval; exact p)"
SEEDED = ("seed", "minutes", "samples seen", "accuracy (95 % interval)", "IMG")


def row(name: str, told: str, m: Metrics | None, parts: tuple[str, ...] = ("cache", "train", "score")) -> list[str]:
    if m is None:
        return [name, told, *[UNMEASURED] * 4]
    minutes = " + ".join(f"{m.minutes[part]:.1f}" for part in parts)
    return [name, told, f"{m.samples_seen:,}", minutes, interval(m.accuracy), f"{m.accuracy['IMG']:.1f}"]


def table(folder: Path = RESULTS / "recipe", told_of: dict[str, str] = ROWS, named: str = "recipe", *also: str) -> str:
    """The rows on the validation split, each beside the first one, problem by problem; `also` are parts of the minutes."""
    said, first = {path.stem: load_predictions(path) for path in sorted(folder.glob("*.jsonl"))}, next(iter(told_of))

    def paired(name: str) -> str:
        if not {name, first} <= said.keys():
            return UNMEASURED
        if name == first:
            return "–"
        return _gap(said[name], said[first])

    found = {path.stem: Metrics.load(path) for path in sorted(folder.glob("*.json"))}
    parts = (*also, "cache", "train", "score")
    rows = [[*row(name, told, found.get(name), parts), paired(name)] for name, told in told_of.items()]
    return markdown((named, *HEADER[1:], PAIRED.format(first)), rows)


def after_an_hour(folder: Path = RESULTS) -> str:
    """The recorded hour, and those of results/recipe/hour/ that differ from it in one thing, on the same test problems."""
    parts, own = ("align", "cache", "train", "score"), load_predictions(folder / HOUR / "predictions.jsonl")
    first = next(iter(ROWS))
    rows = [[*row(first, ROWS[first], Metrics.load(folder / f"{HOUR}.json"), parts), "–"]]
    for name, told in ROWS.items():
        path = folder / "recipe" / "hour" / f"{name}.json"
        if path.is_file():
            gap = _gap(load_predictions(path.with_suffix(".jsonl")), own)
            rows.append([*row(name, told, Metrics.load(path), parts), gap])
    return markdown((*HEADER, PAIRED.format(first)), rows)


def earlier(folder: Path = RESULTS / "earlier" / "recipe") -> str:
    runs = {name: Metrics.load(folder / f"{name}.json") for name in EARLIER}
    rows = [[*row(name, EARLIER[name], m), f"{m.blank_image['IMG']:.1f}"] for name, m in runs.items()]
    return markdown((*HEADER, LAST), rows)


def seeded(m: Metrics, control: float) -> list[str]:
    """A run among those that differ in their seeds, with its accuracy on pictures that lack something."""
    shares = (f"{share:.1f}" for share in (m.accuracy["IMG"], control, m.base["avg"]))
    return [str(m.seed), f"{m.minutes['total']:.1f}", f"{m.samples_seen:,}", interval(m.accuracy), *shares]


def hours(folder: Path = RESULTS) -> str:
    """The recorded hour, and those that differ from it in their seeds, problem by problem where they have the same ones."""
    first = Metrics.load(folder / f"{HOUR}.json")
    asked = [folder / HOUR / "predictions.jsonl", folder / "drawn_anew" / f"{HOUR}.jsonl"]  # on either draw
    own = {answer.id: answer for path in asked if path.is_file() for answer in load_predictions(path)}
    rows = [[*seeded(first, first.controls["swapped"]["avg"]), first.data, "–"]]
    for path in sorted((folder / "seeds").glob(f"{HOUR}-*.json")):
        m, said = Metrics.load(path), load_predictions(path.with_suffix(".jsonl"))
        known = {answer.id for answer in said} <= own.keys()
        gap = _gap(said, [own[answer.id] for answer in said]) if known else UNMEASURED
        rows.append([*seeded(m, m.controls["swapped"]["avg"]), m.data, gap])
    return markdown((*SEEDED, "another's picture", "base model", "problems", PAIRED.format("seed 0")), rows)


def _gap(ours: list[Prediction], theirs: list[Prediction]) -> str:
    """How many points more, the interval, and how often luck alone would part them as far."""
    found = compare(ours, theirs)
    return "{:+.1f} ({:+.1f} to {:+.1f}; {:.2g})".format(found.difference, *found.ci95, found.p_value)


def seeds(folder: Path = RESULTS / "earlier") -> str:
    """The runs of fifteen minutes that differ in their seed only, and how far apart they are."""
    runs = [Metrics.load(path) for path in sorted(folder.glob("fifteen_minutes_smolbridge_seed*.json"))]
    columns = [(m.accuracy["avg"], m.accuracy["IMG"], m.blank_image["IMG"]) for m in runs]
    rows = [seeded(m, m.blank_image["IMG"]) for m in runs]
    if len(runs) > 1:
        spread = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in zip(*columns)]
        rows.append(["mean ± standard deviation", "", "", *spread, ""])
    return markdown((*SEEDED, "blank", "base model"), rows)


def tables() -> dict[str, str]:
    """By marker name."""
    uncaptioned = table(RESULTS / "without_captions", UNCAPTIONED, "way", "align")
    folder = RESULTS / "recipe" / "batch"
    batches = {f"recipe-batch-{seed}": table(folder, told, f"seed {seed}") for seed, told in enumerate(BATCHES)}
    runs = {"recipe": table(), "recipe-hour": after_an_hour(), "earlier": earlier(), **batches}
    return {**runs, "uncaptioned": uncaptioned, "hours": hours(), "seeds": seeds()}


if __name__ == "__main__":
    page = PACKAGE.parent / "docs" / "recipe.md"
    page.write_text(render_readme(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
