"""What several commands share: an option that isn't a field, folders that aren't mixed up."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from care.errors import UsageError

FailAbove = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Exit with 1 if the mean ASR after the repair is greater."),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="A line for each answer that a monitor decided.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]

JUDGING = ("judges", "labels", "margin")
"""Options of who judges, for commands whose answers the rules alone judge."""


def hide_loading_bars() -> None:
    """Without transformers' bar for loading weights; those of downloads from the Hub stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()


def check_folder(out: Path, resume: bool) -> None:
    """UsageError if `out` holds something and nobody said to go on with it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; pass a folder.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"The folder {out} isn't empty; go on in it with --resume or choose another folder."
        )


def show_shard(path: Path, waiting: Sequence[object]) -> None:
    """Where a shard is, and for which others' attacks it waits."""
    print(path)
    if waiting:
        others = ", ".join(map(str, waiting))
        print(f"Its turns of the attacks are made, those of shards {others} aren't: when they are,")
        print("ask for every shard again, with --resume, and they are answered.")


def show_table(run: Path) -> None:
    """Write the page of a run's table beside it, and say where both are."""
    from care.evaluation.tabulation import TABLE
    from care.report.evaluation import page_of

    print(run / TABLE)
    print(page_of(run / TABLE))


def hold_to(threshold: float | None, found: float | None) -> None:
    """Exit with 1 if the mean ASR after the repair exceeds the threshold."""
    if threshold is None:
        return
    if math.isnan(threshold):  # no rate is above it, so that everything would pass
        raise UsageError("--fail-above is not a number; pass a rate from 0 to 1.")
    if found is None:
        raise UsageError(
            "--fail-above needs at least one attack suite, but none was evaluated; add one with "
            "--suite or leave the option out."
        )
    if found > threshold:
        print(f"The mean ASR is {found:.3f}, above {threshold:g}.", file=sys.stderr)
        raise typer.Exit(1)
