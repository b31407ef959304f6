"""The model card of an artefact: what it edits, its figures, threat model and known failures.

Its text is the template `card.md.j2`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from care.data.small_world.suites import PGD
from care.defenses.repair.channel import Channel, RepairData


def card(repair: RepairData) -> str:
    """The model card: threat model, figures with intervals, known failures."""
    model = {"name": None} | (repair.manifest.get("model") or {})
    figures = repair.manifest.get("evaluation") or {}
    suites, certified = figures.get("suites", []), figures.get("certified", {})
    return _template().render(
        repair=repair,
        model=model,
        suites=suites,
        certified=certified,
        descended=PGD,
        gate=_gate_words,
        interval=_interval,
        bound=_bound,
    )


@cache
def _template() -> Template:
    text = resources.files("care.defenses").joinpath("card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, not a page
        keep_trailing_newline=True,
    )
    return environment.from_string(text)


def _gate_words(channel: Channel) -> str:
    """The families of attacks for which the gate of a channel opens."""
    if channel.gate is None:
        return "none"
    return ", ".join(channel.gate.families) or f"{len(channel.gate.low)} filters"


def _interval(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def _bound(certified: dict[str, float]) -> str:
    """An upper bound, of nothing where no goal is in the text."""
    if certified.get("unstated") == certified.get("n", 0):
        return "none: goals aren't in the text"
    return f"\N{LESS-THAN OR EQUAL TO} {_interval(certified)}"
