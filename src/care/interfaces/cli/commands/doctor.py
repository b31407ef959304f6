"""The command `care doctor`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import AsJson
from care.interfaces.cli.tables import print_table
from care.pipeline.config import RepairJob


@command("doctor")
@takes(RepairJob, recipes=True)
def doctor(job: RepairJob, *, as_json: AsJson = False) -> None:
    """Versions, devices, memory, hub, and what a job with the options of `care repair` needs."""
    from care.pipeline.doctor import findings

    found = findings(job)
    if as_json:
        print(json.dumps([vars(each) for each in found], indent=1))
        return
    print_table(["what", "found", "to do"], ([e.about, e.found, e.to_do] for e in found))
