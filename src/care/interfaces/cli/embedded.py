"""The commands on the model that comes with care: `care embedded …`.

Nothing is computed here, and torch is imported only by the commands that need it.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from care.interfaces.cli.options import Command, Precision, check_folder, interval, log, print_table

embedded_app = typer.Typer(help="The small model that comes with care.", no_args_is_help=True)
embedded_command = partial(embedded_app.command, cls=Command)


# -- the embedded model ------------------------------------------------------------------------


@embedded_command()
def assemble() -> None:
    """Download the parts and assemble the model; the folder it lies in."""
    from care.models.embedded.cache import ensure_base

    print(ensure_base())


@embedded_command()
def base() -> None:
    """The folder of the assembled but untrained model, there or not."""
    from care.models.embedded.cache import base_folder

    folder = base_folder()
    if not folder.is_dir():
        print("Not assembled yet; run `care embedded assemble`.", file=sys.stderr)
    print(folder)


WorkFolder = Annotated[Path, typer.Option(help="Folder for the results and checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in --out, or start.")]


@embedded_command()
def train(
    out: WorkFolder = Path("runs/train"),
    resume: Resume = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the recipe.")] = 0,
    align_steps: Annotated[int, typer.Option(min=1, help="Steps of the tower's alignment.")] = 240,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the lessons.")] = 800,
) -> None:
    """Train the shipped weights anew (about two hours on two cores)."""
    check_folder(out, resume)
    from care.models.embedded.cache import load
    from care.models.embedded.train import TrainConfig
    from care.models.embedded.train import train as run_recipe

    def untrained() -> tuple[Any, Any]:
        model, processor = load("bfloat16", trained=False)
        model.set_attn_implementation("eager")  # the fused kernels give no gradients here
        return model, processor

    config = TrainConfig(seed=seed, align_steps=align_steps, steps=steps)
    print(run_recipe(untrained, out, config, log))


@embedded_command()
def attack(out: WorkFolder = Path("runs/attack"), resume: Resume = False) -> None:
    """Make the universal adversarial pictures anew (about two minutes each on two cores)."""
    check_folder(out, resume)
    from care.models.embedded.attack import make
    from care.models.vlm import VLM

    for path in make(VLM.embedded(), out, log):
        print(path)


@embedded_command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="Test examples of each suite.")] = 60,
    dtype: Annotated[Precision, typer.Option(help="Precision.")] = Precision["auto"],
) -> None:
    """How the model behaves on test goals, with intervals.

    Exits with 1 if a whole interval lies below what is asked of the model.
    """
    from care.models.embedded.check import THRESHOLDS, behaviours, shortfalls
    from care.models.vlm import VLM
    from care.runs.progress import Progress

    found = behaviours(VLM.embedded(str(dtype)), n=n, progress=Progress)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        least = {name: f"{share:.2f}" for name, share in THRESHOLDS.items()}
        cells = ([k, interval(rate), str(rate["n"]), least.get(k, "")] for k, rate in found.items())
        print_table(["behaviour", "rate", "n", "at least"], cells)
    missed = shortfalls(found)
    for name in missed:
        log(f"{name}: at most {found[name]['high']:.2f}, below {THRESHOLDS[name]:.2f}.")
    if missed:
        raise typer.Exit(1)
