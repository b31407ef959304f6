"""The settings of CARE's own presets that a search tries, and repairs with them.

What a preset leaves open is in `care.defenses.repair.searched`; here are its layers, of which the
preset's own choice comes first: all that the diagnosis recommends or, where it recommends none,
those at the preset's depths. Beside them stand each of the recommended ones alone and those at the
depths of any preset. With monitors the default leaves layers open for either modality.

Monitors are fitted once for each part of the material; another share of false alarms has the same
detectors with other thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from care.data.example import Suite
from care.defenses.monitors.choosing import MonitorsFit
from care.defenses.repair.channel import MODALITIES, Modality
from care.defenses.repair.fitting import Fitter, depth_sites
from care.defenses.repair.presets import PRESETS, Preset
from care.defenses.repair.repair import Repair
from care.defenses.repair.searched import searched, with_options
from care.diagnosis.results import Diagnosis
from care.evaluation.results import Results
from care.models.sites import Site
from care.pipeline.fits import Made, timed
from care.pipeline.selection import preset_sites
from care.pipeline.stages import Stages
from care.pipeline.tuning import Options, points_of

_DEPTHS = dict.fromkeys(config.depth for config in PRESETS.values())
"""Relative depths of layers that are tried whatever is recommended."""


def open_settings(preset: Preset) -> dict[str, tuple[Any, ...]]:
    """The values that are tried of each setting of a preset, without a model: of layers, which a
    diagnosis tells, one stands for all."""
    config = PRESETS[preset]
    by_modality = config.layers_by == "channels"
    layers = [f"{m}_layers" for m in MODALITIES] if by_modality else ["layers"]
    return dict.fromkeys(layers, ((0,),)) | searched(preset, config)


class CareSettings:
    """One preset with what it leaves open."""

    def __init__(
        self,
        work: Stages,
        preset: Preset,
        fitters: Callable[[int], Fitter],
        diagnosis: Diagnosis,
        bare: Results,
        stage: str,
        remember: bool = False,
        suites: Sequence[Suite] | None = None,
    ) -> None:
        """`fitters` are those of each part of the material, `bare` the answers of the undefended
        model that monitors are chosen on, to `suites` or to validation's; they are kept by the name
        `stage`, with what they rest on if that is to be remembered."""
        self.work, self.preset, self.fitters = work, preset, fitters
        self.bare, self.stage, self.remember, self.suites = bare, stage, remember, suites
        config = PRESETS[preset]
        if config.monitors is not None:
            config = replace(config, monitors=fitters(0).config.monitors)
        self.config = config
        own = preset_sites(preset, work.vlm, diagnosis)
        self.searched: dict[str, tuple[Any, ...]] = {}
        if config.layers_by == "channels":
            self.searched |= {f"{m}_layers": self._layers(own[m]) for m in MODALITIES}
        else:
            self.searched["layers"] = self._layers(own["image"])
        self.searched |= searched(preset, config)

    def _layers(self, own: Sequence[Site]) -> tuple[tuple[int, ...], ...]:
        """Choices of layers, the preset's own first."""
        found = [own, *([site] for site in own)]
        found += [depth_sites(self.work.vlm, depth, self.config.kind) for depth in _DEPTHS]
        return tuple(dict.fromkeys(tuple(sorted(s.layer for s in sites)) for sites in found))

    def wanted(self, most: int, seed: int) -> list[Options]:
        """The settings that are tried, the preset's own first."""
        own = {name: values[0] for name, values in self.searched.items()}
        return points_of(self.searched, own, most, seed)

    def fitter(self, options: Options, number: int = 0) -> Fitter:
        """The fitter of these settings on the part of that number."""
        return self.fitters(number).with_config(with_options(self.config, options))

    def made(self, options: Options, number: int = 0) -> Made:
        """The repair with these settings, fitted on the part of that number."""
        fitter = self.fitter(options, number)
        repair, seconds = timed(
            lambda: Repair.of(fitter.repair(self._places(options), self.preset))
        )
        if "false_alarms" not in options:
            return repair, seconds
        stage = f"{self.stage}-{number}" if number else self.stage
        monitors = self.monitors(options, number).others[options["false_alarms"]]
        assert isinstance(repair, Repair)
        return replace(repair, monitors=monitors), seconds + self.work.seconds(stage)

    def monitors(self, options: Options, number: int = 0) -> MonitorsFit:
        """Monitors of the part of that number, at all shares of false alarms that are tried of the
        first, and else at the one that was taken."""
        stage = f"{self.stage}-{number}" if number else self.stage
        shares = (options["false_alarms"],)
        if not number:
            shares = tuple(dict.fromkeys((*self.searched["false_alarms"], *shares)))
        own = self.fitters(number).with_config(self.config)
        return self.work.monitors(own, self.bare, stage, shares, self.remember, self.suites)

    def remembering(self, repair: Repair, options: Options) -> Repair:
        """The repair with these settings and what it rests on, as far as that was kept."""
        fitter, monitors = self.fitter(options), ()
        if self.config.monitors is not None:
            times = options["false_alarms"] / self.config.monitors.false_alarms
            kept = self.monitors(options).memory
            if not kept:
                return repair
            monitors = tuple(replace(each, share=times * each.share) for each in kept)
        return replace(repair, memory=fitter.remembered(repair.channels, monitors))

    def _places(self, options: Options) -> dict[Modality, list[Site]]:
        def layers(modality: Modality) -> tuple[int, ...]:
            return options["layers" if "layers" in options else f"{modality}_layers"]

        return {m: [Site(layer, self.config.kind) for layer in layers(m)] for m in MODALITIES}
