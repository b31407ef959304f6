"""The command `care list defenses`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import inspect

from care.interfaces.cli.registry import command
from care.interfaces.cli.tables import print_table


@command("list defenses")
def list_defenses() -> None:
    """Every defense, what it is, and the file by which --repair tells its folder."""
    from care.defenses.loading import registered  # that module imports those of the package
    from care.evaluation.config import UNDEFENDED

    cells = [[UNDEFENDED, "The bare model, which stands in every table.", ""]]
    for name, kind in sorted(registered().items()):
        what, *_ = (inspect.getdoc(kind) or "").split("\n")
        cells.append([name, what, kind.stored_as or ""])
    print_table(["defense", "what it is", "its file"], cells)
