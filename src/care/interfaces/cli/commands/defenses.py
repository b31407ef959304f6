"""The command `care list defenses`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import inspect

from care.interfaces.cli.registry import command
from care.interfaces.cli.tables import print_table


@command("list defenses")
def list_defenses() -> None:
    """Every defense, what it is, where it was published, and the file that tells its folder."""
    from care.defenses import known
    from care.evaluation.config import UNDEFENDED

    cells = [[UNDEFENDED, "The bare model, which stands in every table.", "", ""]]
    for name in known.names():
        kind = known.kind_of(name)
        what, *_ = (inspect.getdoc(kind) or "").split("\n")
        cells.append([name, what, kind.paper if kind else "", (kind and kind.stored_as) or ""])
    print_table(["defense", "what it is", "paper", "its file"], cells)
