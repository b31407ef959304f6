"""Fitting a repair: which answers worked, what sets them apart, and where to send them instead.

At each text site, for the activations at the decision position,

1. filters: C_m u = λ C_b u, malicious = attacks that were complied with (each family of attacks
   counts the same), benign = answered benign requests *and* refused malicious ones. So u sees what
   is peculiar to complying with an attack, and is blind to harmful-or-not and to refuse-or-answer;
2. pattern: the write directions W with  W Uᵀ(h − μ) ≈ m_f − r  for attacks of family f with mean
   m_f and ≈ 0 for the benign class (ridge regression); r is the mean of the refusals. Removing
   the unsafe coordinates along W moves a complied-with attack to where refusals are, and leaves
   alone what the filters don't see: an oblique projection of the unsafe subspace.

The presets `paper` and `official` project orthogonally (W = U) and use the contrasts of
`contrast`; the table of differences is `PRESETS`. Validation decides among candidates, elsewhere
(`selection`). Fu et al. 2026, arXiv 2603.27240; Haufe et al. 2014 for filters and patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from care.anatomy import Scope, Site, SiteKind
from care.artefact import model_facts
from care.contrast import Answered, Material, activations, contrast
from care.errors import FitError, UsageError
from care.examples import Example, Suite
from care.judges import Judge, refused
from care.moments import Moments
from care.repair import Channel, Modality, Repair
from care.subspace import Subspace, SubspaceConfig, difference_of_means, fit_subspace
from care.vlm import VLM

Preset = Literal["paper", "official", "corrected"]


@dataclass(frozen=True)
class RepairConfig:
    """How a repair is fitted; `PRESETS` holds the three that have names."""

    text_kind: SiteKind = "layer_out"
    """Kind of the text sites that are edited."""
    text_fit_kind: SiteKind | None = None
    """Kind of site at which text activations are taken; None: where they are edited."""
    text_depth: tuple[float, ...] = (0.55, 0.67, 0.8)
    """Relative depths of the text sites, when no sites are given."""
    text_contrast: Literal["comply-refuse", "comply-rest"] = "comply-rest"
    """What counts as benign on the text side (see `contrast`)."""
    text_pool: Scope = "decision"
    """Tokens that text activations are pooled over."""
    text_scopes: tuple[Scope, ...] = ("decision",)
    """Tokens that text channels edit."""
    oblique: bool = True
    """Write along the refusal pattern instead of projecting orthogonally."""
    clip: float | None = 0.97
    """Quantile of the benign coordinates within which nothing is taken away; None to project."""
    image_kind: SiteKind = "layer_out"
    """Kind of the image sites that are edited."""
    image_fit_kind: SiteKind | None = None
    """As `text_fit_kind`, for image tokens."""
    image_depth: tuple[float, ...] = (0.07,)
    """Relative depths of the image sites; empty for none."""
    image_scopes: tuple[Scope, ...] = ("image",)
    """Tokens that image channels edit."""
    subspace: SubspaceConfig = field(
        default_factory=lambda: SubspaceConfig(shrinkage=0.1, max_rank=16, permutations=20)
    )
    """Target, shrinkage and rank of every subspace."""
    strength: float = 1.0
    """a; 1 removes the unsafe coordinates, more overshoots."""
    fusion: Literal["adaptive", "sum"] = "adaptive"
    """How two corrections of one token are combined."""


_PAPER = RepairConfig(
    text_kind="ffn_out",
    text_depth=(0.5, 0.53, 0.56),
    text_contrast="comply-refuse",
    text_pool="response",
    text_scopes=("all",),
    oblique=False,
    clip=None,
    image_kind="ffn_out",
    image_depth=(0.5, 0.53, 0.56),
    image_scopes=("all",),
    subspace=SubspaceConfig(target="cov", rank="auto"),
)

PRESETS: Mapping[str, RepairConfig] = {
    "paper": _PAPER,
    "official": replace(
        _PAPER,
        text_fit_kind="layer_out",
        image_fit_kind="layer_out",
        subspace=SubspaceConfig(target="cov", ridge=1e-6, rank=64, orthonormalise=False),
        strength=4.0,
    ),
    "corrected": RepairConfig(),
}
"""The formulas as printed; the released code's behaviour, for parity; and the default."""


def gather(
    vlm: VLM,
    attacks: Sequence[Example],
    benign: Sequence[Example],
    *,
    judge: Judge | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 12,
    progress: Callable[[int], None] | None = None,
) -> Material:
    """Let the model answer, and sort its answers by outcome.

    FitError if no attack worked, no malicious request was refused, or no benign one answered.
    """
    requests = [*attacks, *benign]
    answers = vlm.generate(
        requests,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop=refused,
        progress=progress,
    )
    verdicts = (judge or Judge())([e.goal for e in requests], answers)
    sorted_: dict[tuple[str, str], list[Answered]] = {}
    for example, answer, verdict in zip(requests, answers, verdicts, strict=True):
        key = (example.kind, verdict.outcome(example.kind))
        sorted_.setdefault(key, []).append((example, answer))
    return Material(
        complied=tuple(sorted_.get(("malicious", "harmful"), ())),
        refused=tuple(sorted_.get(("malicious", "refused"), ())),
        answered=tuple(sorted_.get(("benign", "safe"), ())),
    )


def fit_repair(
    vlm: VLM,
    attacks: Suite | Sequence[Example],
    benign: Suite | Sequence[Example],
    *,
    sites: Sequence[Site] | None = None,
    preset: Preset = "corrected",
    config: RepairConfig | None = None,
    judge: Judge | None = None,
    batch_size: int = 16,
) -> Repair:
    """Fit a repair on malicious and benign requests, without training.

    `sites` are the text sites (those of the preset's depths by default); `config` overrides the
    preset. Raises FitError when a class is empty or its activations can't be fitted.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: use {', '.join(PRESETS)}")
    material = gather(vlm, list(attacks), list(benign), judge=judge)
    chosen = config or PRESETS[preset]
    return Fitter(vlm, material, chosen, batch_size).repair(sites, preset)


def depth_sites(vlm: VLM, depths: Sequence[float], kind: SiteKind) -> list[Site]:
    """The sites at relative depths in [0, 1] of the decoder, without repetition."""
    last = vlm.anatomy.n_layers - 1
    return list(dict.fromkeys(Site(min(last, round(d * last)), kind) for d in depths))


class Fitter:
    """Fits repairs of several configurations to one material, taking activations once."""

    def __init__(
        self, vlm: VLM, material: Material, config: RepairConfig, batch_size: int = 16
    ) -> None:
        self.vlm, self.material, self.config = vlm, material, config
        self.batch_size = batch_size
        self._kept: dict[tuple[str, Scope, Site], np.ndarray] = {}
        self._subspaces: dict[tuple[str, Site, SubspaceConfig], Subspace] = {}

    def repair(self, sites: Sequence[Site] | None = None, preset: str = "corrected") -> Repair:
        """Text channels at `sites` and image channels at the configuration's depths."""
        config = self.config
        wanted = list(sites or depth_sites(self.vlm, config.text_depth, config.text_kind))
        channels = [self.text_channel(site) for site in self.vlm.anatomy.check(wanted)]
        if config.image_depth and any(e.images for e, _ in self.material.complied):
            image = depth_sites(self.vlm, config.image_depth, config.image_kind)
            channels += [self.image_channel(site) for site in image]
        manifest = {
            "preset": preset,
            "model": model_facts(self.vlm),
            "config": asdict(config),
            "fitted_on": {
                "complied": len(self.material.complied),
                "refused": len(self.material.refused),
                "answered": len(self.material.answered),
                "examples": sorted({e.digest()[:16] for part in self._parts() for e, _ in part}),
            },
        }
        return Repair(tuple(channels), config.fusion, "care", manifest)

    def _parts(self) -> tuple[tuple[Answered, ...], ...]:
        return self.material.complied, self.material.refused, self.material.answered

    def with_config(self, config: RepairConfig) -> Fitter:
        """A fitter of another configuration that shares the activations."""
        other = Fitter(self.vlm, self.material, config, self.batch_size)
        other._kept, other._subspaces = self._kept, self._subspaces
        return other

    def image_repair(self) -> Repair:
        """Image channels alone, at the preset's depths (an ablation)."""
        depths = PRESETS["corrected"].image_depth
        sites = depth_sites(self.vlm, depths, self.config.image_kind)
        channels = tuple(self.image_channel(site) for site in sites)
        return Repair(channels, self.config.fusion, "visual subspace alone")

    def _subspace(
        self, name: str, site: Site, malicious: np.ndarray, benign: np.ndarray
    ) -> Subspace:
        """The subspace of one contrast at one site, fitted once."""
        key = (name, site, self.config.subspace)
        if key not in self._subspaces:
            moments = [Moments(rows.shape[1]).fit(rows) for rows in (malicious, benign)]
            self._subspaces[key] = fit_subspace(moments[0], moments[1], self.config.subspace)
        return self._subspaces[key]

    def rows(self, part: str, answered: Sequence[Answered], site: Site, scope: Scope) -> np.ndarray:
        """Pooled activations (N, D) of one class, taken once."""
        key = (part, scope, site)
        if key not in self._kept:
            found = activations(self.vlm, answered, [site], scope, self.batch_size)
            self._kept[key] = found[site]
        return self._kept[key]

    def prefetch(self, sites: Sequence[Site]) -> None:
        """Take the activations of text classes at many sites in one pass over the material."""
        scope = self.config.text_pool
        chosen = contrast(self.config.text_contrast, self.material)
        for part, answered in self._text_parts(chosen.malicious).items():
            missing = [site for site in sites if (part, scope, site) not in self._kept]
            if missing:
                found = activations(self.vlm, answered, missing, scope, self.batch_size)
                self._kept |= {(part, scope, site): found[site] for site in missing}

    def _text_parts(self, malicious: Sequence[Answered]) -> dict[str, Sequence[Answered]]:
        return {
            "complied": malicious,
            "refused": self.material.refused,
            "answered": self.material.answered,
        }

    def _text_classes(self, site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Complied, benign and refused activations for a text site; refused are among benign."""
        config, scope = self.config, self.config.text_pool
        source = Site(site.layer, config.text_fit_kind or site.kind)
        chosen = contrast(config.text_contrast, self.material)
        malicious = self.rows("complied", chosen.malicious, source, scope)
        if config.text_contrast == "comply-refuse":
            benign = self.rows("same requests, refused", chosen.benign, source, scope)
            return malicious, benign, benign
        refusals = self.rows("refused", self.material.refused, source, scope)
        answers = self.rows("answered", self.material.answered, source, scope)
        return malicious, np.concatenate([refusals, answers]), refusals

    def _image_classes(self, site: Site) -> tuple[np.ndarray, np.ndarray]:
        """Activations of attack pictures and of benign pictures for an image site."""
        source = Site(site.layer, self.config.image_fit_kind or site.kind)
        chosen = contrast("images", self.material)
        return (
            self.rows("attack pictures", chosen.malicious, source, "image"),
            self.rows("benign pictures", chosen.benign, source, "image"),
        )

    def text_channel(self, site: Site) -> Channel:
        """The channel of one text site."""
        config = self.config
        malicious, benign, refusals = self._text_classes(site)
        families = _families(malicious, [example for example, _ in self.material.complied])
        name = f"{config.text_contrast} {config.text_pool} {config.text_fit_kind}"
        subspace = self._subspace(name, site, _balanced(families), benign)
        pattern = None
        if config.oblique:
            pattern = refusal_pattern(subspace, families, refusals, benign)
        return _channel(site, "text", config, subspace, benign, pattern)

    def image_channel(self, site: Site) -> Channel:
        """The channel of one image site: attack pictures against benign ones."""
        malicious, benign = self._image_classes(site)
        name = f"images {self.config.image_fit_kind}"
        subspace = self._subspace(name, site, malicious, benign)
        return _channel(site, "image", self.config, subspace, benign)

    def means_control(self, repair: Repair) -> Repair:
        """The repair with the difference of means in place of every subspace (a control)."""
        channels = []
        for channel in repair.channels:
            if channel.modality == "text":
                malicious, benign, _ = self._text_classes(channel.site)
            else:
                malicious, benign = self._image_classes(channel.site)
            moments = [Moments(rows.shape[1]).fit(rows) for rows in (malicious, benign)]
            channels.append(channel.projecting(difference_of_means(*moments)))
        return replace(repair, channels=tuple(channels), name="difference of means")


def _channel(
    site: Site,
    modality: Modality,
    config: RepairConfig,
    subspace: Subspace,
    benign: np.ndarray,
    pattern: np.ndarray | None = None,
) -> Channel:
    """The channel with the configuration's scope, strength and, if it clips, benign bounds."""
    scopes = config.text_scopes if modality == "text" else config.image_scopes
    bounds = None
    if config.clip is not None:
        z = (benign - subspace.mean) @ subspace.basis
        low, high = np.quantile(z, (1 - config.clip, config.clip), axis=0).astype(np.float32)
        bounds = (low, high)
    return Channel(
        site,
        modality,
        scopes,
        subspace,
        config.strength,
        "project" if bounds is None else "clip",
        bounds,
        pattern,
    )


def _families(rows: np.ndarray, examples: Sequence[Example]) -> list[np.ndarray]:
    """Rows by the family of their attack: its suite, or category where it has no suite."""
    names = [e.suite or e.category or e.id.rpartition("-")[0] for e in examples]
    return [rows[[n == name for n in names]] for name in dict.fromkeys(names)]


def _balanced(families: Sequence[np.ndarray]) -> np.ndarray:
    """All rows, each family repeated to about the size of the largest."""
    most = max(map(len, families))
    return np.concatenate([np.resize(rows, (most, rows.shape[1])) for rows in families])


def refusal_pattern(
    subspace: Subspace,
    families: Sequence[np.ndarray],
    refusals: np.ndarray,
    benign: np.ndarray,
    ridge: float = 1e-3,
) -> np.ndarray:
    """Write directions W (D, K) that take each family's mean to the mean of the refusals.

    W = argmin Σ_f mean_f ‖W z − (m_f − r)‖² + mean_benign ‖W z‖² + ridge, with z = Qᵀ (h − μ):
    the correction −W z is the step to the refusals for attacks, and nothing for benign inputs.
    """
    basis, mean = subspace.basis.astype(np.float64), subspace.mean.astype(np.float64)
    target, width = refusals.mean(0), subspace.rank
    gram = np.zeros((width, width))
    cross = np.zeros((basis.shape[0], width))
    for rows in families:
        z = (rows - mean) @ basis
        gram += z.T @ z / len(z) / len(families)
        cross += np.outer(rows.mean(0) - target, z.mean(0)) / len(families)
    z = (benign - mean) @ basis
    gram += z.T @ z / len(z)
    gram += ridge * np.trace(gram) / width * np.eye(width)
    pattern = np.linalg.solve(gram, cross.T).T
    if not np.isfinite(pattern).all():
        raise FitError("the write pattern isn't finite: the filters are degenerate; lower the rank")
    return pattern.astype(np.float32)
