"""The commands on the model that comes with care: `care embedded …`.

Nothing is computed here, and torch is imported only by the commands that need it.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import sys
from functools import partial

import typer

from care.interfaces.cli.options import Command

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
