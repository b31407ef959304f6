"""What an exported repair states of itself: care_export.json, and the model card README.md.

The card's text is the template `export_card.md.j2`. What is exported is in `exporting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal, get_args

from care.typed import WHEN_SET, NonNegative, Positive, Share

SCHEMA = "care.export/1"

Format = Literal["merged", "lora"]
"""A whole checkpoint with other weights, or an adapter of PEFT."""

Part = Literal["monitors", "gates", "scopes", "fusion", "centres", "sites"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What of a repair may have to be left out (`linear_parts`)."""


@dataclass(frozen=True, kw_only=True)
class FoldedSite:
    """One linear map that holds edits."""

    name: str
    """The map, as the model names it."""
    rank: Positive
    """Directions that are taken out of what it writes or reads."""
    bias: bool
    """Whether its bias holds a centre."""


@dataclass(frozen=True, kw_only=True)
class ProbeRates:
    """Rates of a small probe under one of the things that are compared."""

    name: str
    """The bare model, the repair, or what was exported."""
    asr: Share | None
    """Mean ASR of the attack suites; none where no answer could be judged."""
    harmless: Share | None
    """Mean rate of the harmless suites; none likewise."""


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What was exported, of what, and what is missing in it."""

    schema: str = SCHEMA
    """Version of these fields."""
    format: Format
    """What was written."""
    model: dict[str, Any]
    """The model, as `care.models.identity.model_facts` tells it."""
    repair: str
    """Name of the repair."""
    digest: str
    """Its SHA-256."""
    maps: tuple[FoldedSite, ...]
    """The linear maps that hold its edits."""
    left_out: tuple[Part, ...]
    """What of it was left out."""
    gap: NonNegative
    """Greatest difference of first tokens' log probabilities between these weights and the edits
    that they stand for, in nats."""
    probe: Annotated[tuple[ProbeRates, ...], WHEN_SET] = ()
    """What leaving that out costs; none where nothing was left out."""
    figures: Annotated[dict[str, Any] | None, WHEN_SET] = None
    """The evaluation of the whole repair, as its own manifest has it, where nothing is missing."""


def export_card(facts: ExportFacts) -> str:
    """The model card of what was exported."""
    from jinja2 import Environment, StrictUndefined

    text = resources.files("care.defenses").joinpath("export_card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, not a page
        keep_trailing_newline=True,
    )
    return environment.from_string(text).render(facts=facts, share=_share, missing=_MISSING)


_MISSING: dict[Part, str] = {
    "monitors": "monitors: nothing reads requests and answers, so no certificate holds",
    "gates": "gates: the edits act on every request, harmless ones too",
    "scopes": "scopes: the edits act at every token",
    "fusion": "adaptive fusion: channels that share a site have a constant share each",
    "centres": "centres: unsafe coordinates become 0, not those of the anchor",
    "sites": "channels at sites that no linear map writes",
}


def _share(rate: float | None) -> str:
    return "not judged" if rate is None else f"{rate:.2f}"
