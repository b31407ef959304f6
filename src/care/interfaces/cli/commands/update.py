"""New attacks for a repair that is there: `care update`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from typing import TYPE_CHECKING

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import check_folder, hide_loading_bars
from care.interfaces.cli.tables import interval, print_table
from care.pipeline.config import UpdateJob

if TYPE_CHECKING:
    from care.evaluation.scores import Scorecard
    from care.pipeline.update import Update


@command("update", "Work")
@takes(UpdateJob)
def update(job: UpdateJob) -> None:
    """Fold new attacks into a saved repair, without the old ones, and say what that changed."""
    check_folder(job.run.out, job.run.resume)
    hide_loading_bars()
    from care.pipeline.update import TABLE
    from care.pipeline.update import update as fold_in
    from care.report.evaluation import page_of
    from care.runs.progress import Progress

    found, card = fold_in(job, Progress)
    show_rates(card)
    for line in told(found):
        print(line)
    print(job.run.out / "repair")
    print(page_of(job.run.out / TABLE))


def show_rates(card: "Scorecard") -> None:
    """The rate of each suite, bare, before and after."""
    names = list(dict.fromkeys(name for suite in card.suites for name in suite.defenses))
    rows = [
        [suite.name, suite.metric, *(interval(suite.defenses[name]) for name in names)]
        for suite in card.suites
    ]
    print_table(["suite", "metric", *names], rows)


def told(found: "Update") -> list[str]:
    """What was folded in and what it changed, in sentences."""
    part = found.folded
    lines = [
        f"Folded in: {part.complied} attacks that worked, {part.refused} that were refused, "
        f"{part.answered} benign requests" + (f"; {part.known} were known." if part.known else ".")
    ]
    if not found.held_out:
        lines.append("The attacks asked are those folded in: too few goals to keep half apart.")
    if found.leaking:
        lines.append(
            f"{found.leaking} of the attacks asked have goals that the repair was fitted on before."
        )
    if found.change is not None and found.p is not None:
        change = found.change
        lines.append(
            f"Attack success on {found.asked} attacks changes by {100 * change.rate:+.0f} points "
            f"[{100 * change.low:+.0f}, {100 * change.high:+.0f}], p = {found.p:.2g}."
        )
    for name, count in part.waiting.items():
        lines.append(
            f"{name}: {count} attacks that worked are too few for a family of channels, which "
            "takes 8; they wait for more."
        )
    for name, count in part.unserved.items():
        lines.append(f"{name}: no channel acts on {count} of the attacks; monitors alone may.")
    for each in found.channels:
        shares = ", ".join(
            f"{name} {before(each.opened_before, name)}{share:.2f}"
            for name, share in each.opened_after.items()
        )
        lines.append(f"The gate at {each.site} ({each.modality}) opens for {shares or 'all'}.")
    lines += [
        f"The monitor of the {each.reads} alarms above {each.after:.3f} ({each.before:.3f} before)."
        for each in found.monitors
    ]
    return lines


def before(opened: dict[str, float], name: str) -> str:
    """The share before, where the family was there."""
    return f"{opened[name]:.2f} → " if name in opened else ""
