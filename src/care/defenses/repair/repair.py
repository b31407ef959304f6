"""Repair: unsafe subspaces at chosen sites, projected out while the model runs.

    data         channels and what they were fitted on                       `channel`
    mathematics  what they do to an activation, and the formula              `edit`
    estimation   from the model's own answers to requests                    `fitting`
    more of it   from new requests, without the old ones                     `folding`, `memory`
    files        a folder that is checked before it is used                  `defenses.artefact`

`Repair` puts these together and is all that a user touches. Fu et al. 2026, arXiv 2603.27240.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from care.data.example import Example, Suite
from care.defenses import artefact
from care.defenses.artefact import FACTS
from care.defenses.base import Defense, Touches, register, touched
from care.defenses.cost import Cost
from care.defenses.monitors.dialogue import Dialogue
from care.defenses.repair.channel import Modality, RepairData
from care.defenses.repair.edit import ChannelEdit, channel_edits
from care.defenses.repair.fitting import fit_repair
from care.defenses.repair.folding import fold_in
from care.errors import UsageError
from care.models.changed import changed_rows
from care.models.edit_stats import EditStats
from care.models.hooks import edited

if TYPE_CHECKING:
    import numpy as np

    from care.models.prompt_cache import PromptCache
    from care.models.responses import Answer
    from care.models.streaming import Streamed
    from care.models.vlm import VLM


@register("repair")
@dataclass(frozen=True, eq=False)
class Repair(RepairData, Defense):
    """Channels and how they are fused, closed while a model is repaired."""

    stored_as: ClassVar[str] = FACTS
    paper: ClassVar[str] = "Fu et al. 2026, 2603.27240"
    cost: ClassVar[Cost] = Cost(
        needs=("malicious requests", "benign requests", "attacks that worked", "refusals")
    )

    @property
    def touches(self) -> Touches:
        """The decision alone where nothing before the last position of a prompt is edited."""
        if self.monitors:
            return "dialogue"
        return touched([scope for channel in self.channels for scope in channel.scopes])

    def check(self, vlm: VLM) -> None:
        """ArtefactError for a repair of another model; a warning for another revision."""
        artefact.check_model(self, vlm)

    def applied(self, vlm: VLM) -> AbstractContextManager[EditStats]:
        """Repair `vlm` while the context is open; yields counts of what was edited to whoever
        holds them (`care.models.hooks.edit`)."""
        self.check_sites(vlm)
        if not self.channels:
            return nullcontext(EditStats({}))
        edits = channel_edits(self, ChannelEdit)
        return edited(vlm, {site: one.within for site, one in edits.items()})

    @property
    def owns_answers(self) -> bool:
        """Whether it watches requests and answers; edits alone only act while the model runs."""
        return bool(self.monitors)

    @property
    def revises(self) -> bool:
        """Monitors read what the undefended model has answered."""
        return bool(self.monitors)

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers as a dialogue with the monitors comes to them; edited ones without any."""
        if not self.monitors:
            return super().answer(vlm, examples, **how)
        return self._dialogue(vlm, how).answers(list(examples))

    def revised(
        self, vlm: VLM, examples: Sequence[Example], answers: Sequence[Answer], **how: Any
    ) -> list[Answer]:
        """The same from answers of the undefended model."""
        if not self.monitors:
            return super().revised(vlm, examples, answers, **how)
        return self._dialogue(vlm, how).answers(list(examples), list(answers))

    def stream(
        self, vlm: VLM, example: Example, *, hold: int | None = None, **how: Any
    ) -> Iterator[Streamed]:
        """The answer while it is made and read; without monitors, while it is made under edits."""
        if not self.monitors:
            return self.edited_stream(vlm, example, hold, how)
        return self._dialogue(vlm, how).stream(example, hold)

    def changed(self, vlm: VLM, prompts: PromptCache) -> np.ndarray | None:
        """Those at whose decision position a gate is open; any, of channels that act elsewhere."""
        gated = all(c.gate is not None and set(c.scopes) == {"decision"} for c in self.channels)
        if self.monitors or not gated:
            return None
        self.check_sites(vlm)
        return changed_rows(vlm, prompts, self.sites, self.applied(vlm))

    def _dialogue(self, vlm: VLM, how: dict[str, Any]) -> Dialogue:
        self.check_sites(vlm)
        closing = partial(self.opened().applied, vlm) if self.channels else None
        return Dialogue(vlm, self.monitors, closing, how)

    def opened(self) -> Repair:
        """The channels alone, closed wherever they act: as if every gate were wide open."""
        channels = tuple(replace(channel, gate=None) for channel in self.channels)
        name = f"{self.name}, opened"
        return replace(self, channels=channels, monitors=(), name=name, memory=None)

    def edits_only(self) -> Repair:
        """The repair without its monitors: gated channels that act on every request."""
        return replace(self, monitors=(), name=f"{self.name}, edits only")

    def monitors_only(self) -> Repair:
        """The repair without its channels: where an answer raises an alarm, a refusal is given."""
        return replace(self, channels=(), name=f"{self.name}, monitors only")

    def only(self, modality: Modality) -> Repair:
        """The repair with the channels of one modality alone (an ablation)."""
        kept = tuple(c for c in self.channels if c.modality == modality)
        if not kept:
            raise UsageError(f"The repair has no {modality} channel to keep; take the other one.")
        return replace(self, channels=kept, name=f"{self.name}, {modality} only")

    def with_strength(self, strength: float) -> Repair:
        """The same subspaces at another strength."""
        channels = tuple(replace(c, strength=strength) for c in self.channels)
        return replace(self, channels=channels)

    @classmethod
    def of(cls, data: RepairData) -> Repair:
        """The repair that does what `data` says, as a fit or an artefact gives it."""
        return cls(**{part.name: getattr(data, part.name) for part in fields(RepairData)})

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        **options: Any,
    ) -> Repair:
        """Fit on requests; see `care.defenses.repair.fitting.fit_repair` for the options."""
        return cls.of(fit_repair(vlm, attacks, benign, **options))

    def partial_fit(
        self,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example] = (),
        **options: Any,
    ) -> Repair:
        """A repair that has learned from new requests too, without the old ones; see
        `care.defenses.repair.folding.fold_in` for the options."""
        return Repair.of(fold_in(self, vlm, list(attacks), list(benign), **options))

    def digest(self) -> str:
        """The SHA-256 that its artefact states, over everything it does and was fitted on."""
        return artefact.digest(self)

    def save(self, folder: str | Path, memory: bool | None = None) -> Path:
        """Write the artefact's folder, with its memory or not (by default unless that is large);
        see `care.defenses.artefact`."""
        return artefact.save(self, Path(folder), memory)

    @classmethod
    def load(cls, folder: str | Path, vlm: VLM | None = None) -> Repair:
        """Read an artefact's folder (or one on the Hub), checked before use, also against `vlm`."""
        return cls.of(artefact.load(folder, vlm))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save to a temporary folder and upload that; the URL of the commit."""
        return artefact.push(self, repo_id, **options)
