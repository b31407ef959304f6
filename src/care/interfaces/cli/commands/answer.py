"""The command `care answer`: one request, answered on the terminal while the answer is made."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import sys

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import Explain, hide_loading_bars
from care.interfaces.requests.single import AnswerConfig


@command("answer", "Work")
@takes(AnswerConfig)
def answer(asked: AnswerConfig, *, explain: Explain = False) -> None:
    """Answer one request, bare or repaired, and show the answer while it is made and read."""
    example = asked.example  # an empty one shows before a model is loaded
    hide_loading_bars()
    from care.defenses.base import stream_under
    from care.defenses.loading import load_defense
    from care.evaluation.monitored import decided
    from care.models.alarms import Withdrawn
    from care.models.responses import Answer

    vlm = asked.model.load()
    defense = None if asked.repair is None else load_defense(asked.repair, vlm)
    # Into a file or a pipe goes what stands in the end alone.
    shown = sys.stdout.isatty()
    try:
        for each in stream_under(defense, vlm, example, asked.hold, **asked.how):
            if isinstance(each, Withdrawn):
                why = f" ({each.alarm.shown})" if each.alarm else ""
                told = f"[withdrawn{why}; this stands in its place:]"
                print(f"\n{told}" if shown and each.shown else told, file=sys.stderr, flush=True)
            elif isinstance(each, Answer):
                print("" if shown else each.text)
                if explain:
                    told = decided(each.alarms, each.source)
                    print(told if each.alarms else "No monitor decided it.", file=sys.stderr)
            elif shown:
                print(each, end="", flush=True)
    except KeyboardInterrupt:
        if shown:
            print()
        raise
