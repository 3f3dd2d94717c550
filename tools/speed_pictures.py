"""Draw the pictures of docs/speed.md, and its tables, from their records: `python -m tools.speed_pictures`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.plots import BLUE, FONT, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, compact_png, sized
from mmlora.reporting.tables import markdown
from tools.readme import render_readme

DOCS = PACKAGE.parent / "docs"
UNREACHED = "not reached"
NAMES = {
    "a": "transformers' Trainer with peft",
    "c": "mmlora, all layers, nothing cached",
    "e": "mmlora, upper half, cached up to there",
    "e4": "mmlora, upper half, cached, batches of four",
}
LOOKS = {"a": (VERMILION, "s", ":"), "c": (ORANGE, "^", "--"), "e": (BLUE, "o", "-"), "e4": (GREEN, "D", "-.")}
SCALED = {  # what `benchmarks/scaling.py` varies, as the table and the picture call it
    "rank": "rank",
    "visual_tokens": "visual tokens",
    "layers": "layers trained",
    "words": "texts",
    "cores": "cores",
    "processes": "processes of one core each",
}
KINDS = (BLUE, SKY, ORANGE, GREEN, PURPLE, GREY)


def time_bars(steps: Mapping[str, Mapping[str, float]]) -> Figure:
    """Milliseconds of a step by kind of work, a bar for each way to take it."""
    figure = sized(7.5, 1.1 + 0.45 * len(steps))
    axes = figure.subplots()
    for row, times in enumerate(steps.values()):
        left = 0.0
        for (kind, seconds), colour in zip(times.items(), KINDS):
            axes.barh(row, 1000 * seconds, left=left, color=colour, edgecolor="white", label=None if row else kind)
            if seconds > 0.06 * sum(times.values()):
                at = (left + 500 * seconds, row)
                axes.annotate(f"{1000 * seconds:.0f}", at, ha="center", va="center", fontsize=FONT, color="white")
            left += 1000 * seconds
    axes.set_yticks(range(len(steps)), list(steps))
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a step")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def in_rows(figure: Figure, count: int, columns: int) -> Sequence[Axes]:
    """So many fields with one scale upwards, `columns` in a row."""
    fields = figure.subplots(-(-count // columns), columns, sharey=True, squeeze=False).flatten()
    for spare in fields[count:]:
        spare.set_visible(False)
    return fields[:count]


def learning_by_the_clock(records: Sequence[Mapping]) -> Figure:
    """Validation accuracy over minutes, a line for each training and a field for each kind of numbers and budget."""
    kinds = list(dict.fromkeys(map(kind_of, records)))
    figure = sized(7.5, 1.1 + 2.5 * -(-len(kinds) // 2))
    fields = dict(zip(kinds, in_rows(figure, len(kinds), 2)))
    told: set[str] = set()
    for record in records:
        who = record["contender"]
        colour, marker, line = LOOKS[who]
        minutes = [answer["minutes"] for answer in record["answers"]]
        label = None if who in told else NAMES[who]
        fields[kind_of(record)].plot(minutes, shares(record), color=colour, marker=marker, linestyle=line, label=label)
        told.add(who)
    for kind, axes in fields.items():
        for mark in records[0]["reached"]:
            axes.axhline(float(mark), color=GREY, linewidth=0.6, zorder=0)
        axes.set(title=kind, xlim=(0, None), ylim=(20, 100))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("validation problems right, %", fontsize=FONT + 1)
    figure.supxlabel("minutes of filling the cache and of training", fontsize=FONT + 1)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


def kind_of(record: Mapping) -> str:
    """What a training multiplied, and its budget, the questions on the way included."""
    return f"{record['machine']['precision']}, {record['settings']['minutes']:g} minutes"


def place(record: Mapping) -> tuple:
    """Where a training stands among the others."""
    settings = record["settings"]
    return record["machine"]["precision"], settings["minutes"], record["contender"], settings["seed"]


def shares(record: Mapping) -> list[float]:
    """Of the problems asked, how many were answered rightly at each moment, %."""
    return [100 * answer["correct"] / answer["n"] for answer in record["answers"]]


def table(records: Sequence[Mapping]) -> str:
    """Minutes until each mark, a row for the trainings of each contender and kind."""
    marks = list(records[0]["reached"])
    rows = []
    for kind, who in dict.fromkeys((kind_of(record), record["contender"]) for record in records):
        own = [r for r in records if (kind_of(r), r["contender"]) == (kind, who)]
        rows.append(
            [
                f"{kind}: ({who}) {NAMES[who]}",
                ", ".join(str(record["settings"]["seed"]) for record in own),
                ", ".join(f"{record['samples_seen']:,}" for record in own),
                *(until([record["reached"][mark] for record in own]) for mark in marks),
                ", ".join(f"{shares(record)[-1]:.1f}" for record in own),
            ]
        )
    return markdown(["", "seeds", "samples seen", *(f"{mark} %" for mark in marks), "last answer, %"], rows)


def until(minutes: Sequence[float | None]) -> str:
    """Minutes of each seed; where none got so far, that alone."""
    return ", ".join("never" if m is None else f"{m:.1f}" for m in minutes) if any(minutes) else UNREACHED


def cost_by_size(sweeps: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Milliseconds of a step, a sample, over what was varied: a field for each."""
    shown = [name for name in SCALED if name in sweeps]
    figure = sized(7.5, 2.1 * -(-len(shown) // 3))
    fields = in_rows(figure, len(shown), 3)
    for name, axes in zip(shown, fields):
        steps = [1000 * found["step_seconds"] for found in sweeps[name]]
        axes.plot([str(found["value"]) for found in sweeps[name]], steps, color=BLUE, marker="o")
        axes.set_xlabel(SCALED[name])
        axes.spines[["top", "right"]].set_visible(False)
    fields[0].set_ylim(bottom=0)  # of all fields, and only now: a limit that is set ends the search for the other one
    figure.supylabel("milliseconds a sample", fontsize=FONT + 1)
    return figure


def scaling_tables(record: Mapping) -> str:
    """What a sample costs at every point; what many problems cost; and other machines, on paper."""
    sweeps, paper = record["sweeps"], record["on_paper"]
    rows = [
        [
            f"{SCALED[name]}: {found['value']}",
            f"{found['tokens']:.0f}",
            f"{1000 * found['step_seconds']:.0f}",
            f"{1000 * found['cache_seconds']:.0f}",
            f"{found['memory_gb']:.1f} GB",
        ]
        for name in SCALED
        for found in sweeps.get(name, ())
    ]
    many = {n["value"]: ({k: n["value"] * n[k] for k in ("cache_seconds", "step_seconds")}, "cache measured, steps from a few")
            for n in sweeps.get("problems", ())}  # fmt: skip
    many |= {int(n): (costs, "on paper") for n, costs in paper["problems"].items()}
    minutes = [
        [f"{n:,}", f"{costs['cache_seconds'] / 60:.1f}", f"{costs['step_seconds'] / 60:.1f}", how]
        for n, (costs, how) in many.items()
    ]
    machines = [
        [f"{name} (on paper)", f"{found['peak_tflops']:g}", found["source"], f"{1000 * found['step_seconds']:.3g}"]
        for name, found in paper["machines"].items()
    ]
    peak = "published peak, 10¹² operations/s"
    return "\n\n".join(
        [
            "![Milliseconds a sample over what is varied](scaling.png)",
            markdown(
                ["one thing varied", "tokens a sample", "step, ms a sample", "cache, ms a sample", "memory"], rows
            ),
            markdown(["problems", "minutes of filling the cache", "minutes of an epoch", ""], minutes),
            markdown(["another machine", peak, "said by", "step, ms a sample at the least"], machines),
        ]
    )


def main() -> None:
    profile, scaling = RESULTS / "speed" / "profile.json", RESULTS / "speed" / "scaling.json"
    trainings = [json.loads(path.read_text()) for path in (RESULTS / "time_to_accuracy").glob("*.json")]
    trainings.sort(key=place)
    pictures: dict[Path, Figure] = {}
    tables: dict[str, str] = {}
    if profile.is_file():
        record = json.loads(profile.read_text())
        named = {"plain layers": record["plain"]["by_kind"], "fused layers": record["fused"]["by_kind"]}
        pictures[DOCS / "step_profile.png"] = time_bars(named)
    if trainings:
        pictures[DOCS / "time_to_accuracy.png"] = learning_by_the_clock(trainings)
        tables["reached"] = table(trainings)
    if scaling.is_file():
        record = json.loads(scaling.read_text())
        pictures[DOCS / "scaling.png"] = cost_by_size(record["sweeps"])
        tables["scaling"] = scaling_tables(record)
    page = DOCS / "speed.md"
    page.write_text(render_readme(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    for path, figure in pictures.items():
        path.write_bytes(compact_png(figure, dpi=140))
        print(f"-> {path}")


if __name__ == "__main__":
    main()
