"""How much a whole diagnosis asks: its parts' configurations, and how many examples each gets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from care.diagnosis.ablation import Ablation
from care.diagnosis.causal_mediation import EffectsConfig
from care.diagnosis.faithfulness import FaithfulnessConfig
from care.diagnosis.neurons.search import NeuronConfig
from care.diagnosis.reliability import ReliabilityConfig
from care.diagnosis.site_reliability import SECOND
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import UsageError
from care.models.sites import Scope
from care.runs.settings import require


@dataclass(frozen=True)
class DiagnosisConfig:
    """How much of everything."""

    sites: SiteScanConfig = field(
        default_factory=lambda: SiteScanConfig(max_attacks=12, max_benign=6)
    )
    """The scan of the sites."""
    effects: EffectsConfig = field(default_factory=EffectsConfig)
    """Causal effects of pairs."""
    neurons: NeuronConfig = field(default_factory=NeuronConfig)
    """The search for neurons."""
    curves: FaithfulnessConfig | None = field(
        default_factory=lambda: FaithfulnessConfig(sizes=4, draws=3)
    )
    """Faithfulness, each point of which costs a pass over all examples; None leaves it out."""
    stability: ReliabilityConfig = field(default_factory=ReliabilityConfig)
    """Agreement of other looks."""
    pairs: int = 6
    """Pairs of each kind for the causal effects of sites, and of the first for faithfulness."""
    pair_kinds: int = 2
    """Kinds of pairs whose causal effects are taken, the first ones; 0 leaves these out."""
    neuron_prompts: int = 24
    """Attacks (or pairs), and benign prompts, that neurons are estimated and verified on."""
    neuron_scopes: tuple[Scope, ...] | None = None
    """Positions at which the neurons of pairs are exchanged; None: all where pairs align."""
    contrast: bool = True
    """Whether causal effects of the first kind are also taken by likelihoods of whole answers."""
    reseeded: int = 6
    """Other attacks on which single layers are removed again, to see whether another draw says the
    same; 0 leaves that out."""
    rescanned: int = 6
    """Greatest sites, and as many others at random, that are removed in a second way; 0 leaves that
    out."""
    second: Ablation = "resample"
    """That way: mean, resample, constant or zero, other than the first one."""
    repair_prompts: int = 32
    """Validation attacks, and benign requests, on which neurons to suppress are chosen; 0: none."""
    repair_most: int = 64
    """Neurons that may be suppressed."""
    judged: int = 6
    """Validation requests of each suite on whose whole answers neuron suppression and a subspace
    repair are compared, where both are at hand (`care.pipeline.neuron_comparison`); 0 for none."""

    def __post_init__(self) -> None:
        require(self, {"pairs": 2, "neuron_prompts": 4, "repair_most": 1})
        optional = ("pair_kinds", "reseeded", "rescanned", "repair_prompts", "judged")
        require(self, dict.fromkeys(optional, 0))
        known = [how for how in SECOND if how != self.sites.intervention]
        if self.rescanned and self.second not in known:
            raise UsageError(
                f"second is {self.second!r} where sites are removed by {self.sites.intervention}; "
                f"use one of {', '.join(known)}."
            )

    def seeded(self, seed: int) -> DiagnosisConfig:
        """The same with the scan's intervals drawn by `seed`."""
        sampling = replace(self.sites.sampling, seed=seed)
        return replace(self, sites=replace(self.sites, sampling=sampling))


BRIEF = DiagnosisConfig(
    sites=SiteScanConfig(windows=(1,), max_attacks=12, max_benign=8),
    curves=None,
    pairs=4,
    pair_kinds=1,
    neuron_prompts=16,
    neuron_scopes=("decision",),
    contrast=False,
    reseeded=0,
    rescanned=0,
    repair_prompts=0,
)
"""What the main job does on the way."""

LAYERS = replace(BRIEF, sites=replace(BRIEF.sites, components=("layer",), top_sites=0))
"""Of it, which layers are to be mended by the ablation of layers (`Diagnosis.ablated_layers`)."""
