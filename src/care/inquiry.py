"""A whole diagnosis: sites, causal effects, neurons, how far to trust them, and a verdict.

What the parts compute is in their own modules; here is which examples each gets and how the
answers of one are asked of the next:

    sites      every part of every layer removed, alone and in windows (`mediation`, `stability`)
    effects    TE, NDE, NIE of pairs through FFN and attention outputs (`effects`)
    neurons    all FFN neurons estimated, the best verified, the fewest that mend it (`neurons`)
    trust      does the ranking of sites, and of neurons, beat random ones (`faithfulness`)

Each part gives plain values and can be stored, so that a killed job goes on after the last one; the
scan of the sites goes on after its last row. `verdict` then says in words what holds and what
doesn't. Without pairs, effects aren't taken and neurons are compared with their means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from care.activations import collect, goals_of, spread
from care.anatomy import Scope, Site
from care.channels import refused_under
from care.compared import Compared
from care.diagnosis import Changes, DiagnosisConfig
from care.effects import EffectsConfig, site_effects
from care.errors import FitError
from care.examples import Example
from care.faithfulness import FaithfulnessConfig, faithfulness, steps
from care.mediation import diagnose
from care.metrics import first_token, refusal_contrast, refusal_log_odds
from care.neuron_estimates import estimate
from care.neuron_repair import NeuronRepair
from care.neuron_report import NeuronConfig
from care.neuron_runs import Neuron, against_means, between_pairs, neuron_means
from care.neuron_search import RULE, Tried, rank_for_repair, search_neurons
from care.neurons import find_neurons
from care.pairs import Pair
from care.progress import Progress, silent
from care.repair import Repair
from care.scan import Removal, ScanRow, scan
from care.stability import Effects, StabilityConfig, agreement, families, halves
from care.verdict import verdict
from care.vlm import VLM

if TYPE_CHECKING:
    from care.judges import Judge

Bar = Callable[..., Progress] | None

_DECISION: tuple[Scope, ...] = ("decision",)


@dataclass(frozen=True)
class InquiryConfig:
    """How much of everything."""

    sites: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    """The scan of the sites."""
    effects: EffectsConfig = field(default_factory=EffectsConfig)
    """Causal effects of pairs."""
    neurons: NeuronConfig = field(default_factory=NeuronConfig)
    """The search for neurons."""
    curves: FaithfulnessConfig | None = field(
        default_factory=lambda: FaithfulnessConfig(sizes=5, draws=4)
    )
    """Faithfulness, each point of which costs a pass over all examples; None leaves it out."""
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """Agreement of other looks."""
    pairs: int = 8
    """Pairs for the causal effects of sites, and for faithfulness."""
    neuron_prompts: int = 24
    """Attacks (or pairs), and benign prompts, that neurons are estimated and verified on."""
    neuron_scopes: tuple[Scope, ...] | None = None
    """Positions at which the neurons of pairs are exchanged; None: all where pairs align."""
    contrast: bool = True
    """Whether causal effects are also taken by the likelihood of whole answers."""
    reseeded: int = 12
    """Other attacks on which single layers are removed again, to see whether another draw says the
    same; 0 leaves that out."""
    repair_prompts: int = 40
    """Validation attacks, and benign requests, on which a neuron repair is chosen; 0 for none."""
    repair_most: int = 64
    """Neurons that a repair may consist of."""


BRIEF = InquiryConfig(
    sites=DiagnosisConfig(windows=(1,), max_attacks=12, max_benign=8),
    effects=EffectsConfig(check_sites=2),
    curves=None,
    pairs=4,
    neuron_prompts=16,
    neuron_scopes=_DECISION,
    contrast=False,
    reseeded=0,
    repair_prompts=0,
)
"""What the main job does on the way."""


class Inquiry:
    """The parts of one diagnosis; see the header of the module."""

    def __init__(
        self,
        vlm: VLM,
        attacks: Sequence[Example],
        benign: Sequence[Example],
        *,
        pairs: Sequence[Pair] = (),
        validation: tuple[Sequence[Example], Sequence[Example]] = ((), ()),
        config: InquiryConfig | None = None,
        judge: Judge | None = None,
        progress: Bar = None,
    ) -> None:
        """`validation` are attacks and benign requests with other goals, for the neuron repair."""
        self.vlm, self.config, self.judge = vlm, config or InquiryConfig(), judge
        self.attacks, self.benign = list(attacks), list(benign)
        self.pairs = list(pairs)
        self.validation = tuple(list(part) for part in validation)
        self.progress = progress or silent

    # -- sites -----------------------------------------------------------------------------------

    def sites(
        self, done: Iterable[ScanRow] = (), keep: Callable[[ScanRow], None] | None = None
    ) -> dict[str, Any]:
        """The diagnosis of the sites with the stability of their effects, as plain values."""
        found = diagnose(
            self.vlm,
            self.attacks,
            self.benign,
            config=self.config.sites,
            judge=self.judge,
            progress=self.progress,
            done=done,
            keep=keep,
        )
        assert found.changes is not None
        return found.to_json() | {"stability": self._stability(found.changes)}

    def _stability(self, changes: Changes) -> list[dict[str, Any]]:
        """Halves, attack families and another draw, on single FFN and attention outputs."""
        rows = [
            row
            for row, item in enumerate(changes.effects)
            if item.window == 1 and item.component != "layer"
        ]
        split, config = changes.n_attacks, self.config.stability
        own = Effects(changes.values[rows, :split], changes.goals[:split], changes.suites[:split])
        found = []
        if len(rows) > 2 and len(set(own.goals)) >= 4:
            found.append(halves(own, config))
        several = _families_of_two(own)
        if several is not None:
            found += families(several, config=config)
        if self.config.reseeded:
            found += self._redrawn(own, [changes.effects[row].site for row in rows])
        return [item.to_json() for item in found]

    def _redrawn(self, own: Effects, sites: Sequence[Site]) -> list[Any]:
        """The same sites removed on attacks that the first look didn't have."""
        used = set(own.goals)
        fresh = [e for e in self.attacks if goals_of([e])[0] not in used]
        others = spread(fresh, self.config.reseeded)
        if len(set(goals_of(others))) < 2:
            return []
        settings = self.config.sites
        benign = spread(self.benign, settings.max_benign or len(self.benign))
        asked = [*others, *benign]
        means = collect(self.vlm, asked, sites, batch_size=settings.batch_size).means
        with self.progress("another draw", len(sites) * len(others)) as bar:
            again = scan(
                self.vlm,
                others,
                [Removal((site,), settings.intervention) for site in sites],
                means=means,
                batch_size=settings.batch_size,
                advance=bar.advance,
            )
        second = Effects(again.effects, tuple(goals_of(others)))
        return [agreement(own, second, "another draw of attacks", "seed", self.config.stability)]

    # -- effects ---------------------------------------------------------------------------------

    def effects(self) -> list[dict[str, Any]]:
        """Causal effects of the pairs through every FFN and attention output, by two metrics.

        Empty without pairs of at least two goals.
        """
        pairs = spread(self.pairs, self.config.pairs)
        if len(set(goals_of([pair.attack for pair in pairs]))) < 2:
            return []
        measures = [first_token(refusal_log_odds(self.vlm))]
        if self.config.contrast:
            measures.append(refusal_contrast(self.vlm))
        sites = self._parts()
        with self.progress("causal effects", len(pairs) * len(sites)) as bar:
            found = site_effects(
                self.vlm,
                pairs,
                sites,
                measures=measures,
                config=self.config.effects,
                advance=bar.advance,
            )
        return [item.to_json() for item in found]

    def _parts(self) -> list[Site]:
        """Every FFN and attention output."""
        return [*self.vlm.anatomy.sites("ffn_out"), *self.vlm.anatomy.sites("mhsa_out")]

    # -- neurons ---------------------------------------------------------------------------------

    def neurons(
        self, rival: Repair | None = None, save: Callable[[NeuronRepair], Any] | None = None
    ) -> dict[str, Any]:
        """The neurons that carry the pairs' difference (without pairs: the attacks), and a repair.

        They are estimated on one half of the prompts and verified on the other. `rival` is a repair
        to compare the neuron repair with, on the same requests; `save` gets the neuron repair.
        """
        many = self.config.neuron_prompts
        if len(self.pairs) >= 4:
            asked = spread(self.pairs, many)
            scopes = self.config.neuron_scopes
            question, verify = (between_pairs(asked[part::2], scopes=scopes) for part in (0, 1))
        else:
            attacks, benign = spread(self.attacks, many), spread(self.benign, many)
            means = neuron_means(self.vlm, benign)
            question, verify = (
                against_means(
                    self.vlm, attacks[part::2], benign[part::2], scopes=_DECISION, means=means
                )
                for part in (0, 1)
            )
        found = find_neurons(
            self.vlm, question, verify=verify, config=self.config.neurons, progress=self.progress
        )
        return found.to_json() | {"repair": self._neuron_repair(rival, save)}

    def _neuron_repair(
        self, rival: Repair | None, save: Callable[[NeuronRepair], Any] | None
    ) -> dict[str, Any] | None:
        """The fewest neurons whose suppression has validation attacks refused; None without any."""
        attacks, benign = (spread(part, self.config.repair_prompts) for part in self.validation)
        if not attacks or not benign:
            return None
        many = self.config.neuron_prompts
        seen = against_means(
            self.vlm, spread(self.attacks, many), spread(self.benign, many), scopes=_DECISION
        )
        assert seen.control is not None
        asked = len(seen.examples) + len(seen.control.examples)
        with self.progress("neurons to suppress", asked) as bar:
            first = estimate(self.vlm, seen, advance=bar.advance)
            ranking = rank_for_repair(first, estimate(self.vlm, seen.control, advance=bar.advance))
        if not ranking:
            return None
        sets = 2 * math.ceil(math.log2(self.config.repair_most)) + 34  # at most
        with self.progress("neuron repair", sets * (len(attacks) + len(benign))) as bar:
            search = search_neurons(
                self.vlm,
                ranking,
                attacks,
                benign,
                means=seen.means,
                scopes=_DECISION,
                most=self.config.repair_most,
                advance=bar.advance,
            )
        chosen = search.repair.neurons if search.repair else ()
        if search.repair is not None and save is not None:
            save(search.repair)
        return {
            "rule": RULE,
            "neurons": [list(neuron) for neuron in chosen],
            "before": _first_tokens(search.before),
            "after": _first_tokens(search.after),
            "subspace": None if rival is None else self._rates(rival, attacks, benign),
        }

    def _rates(
        self, repair: Repair, attacks: Sequence[Example], benign: Sequence[Example]
    ) -> dict[str, float]:
        batch = self.config.sites.batch_size
        [refused] = refused_under(self.vlm, [*attacks, *benign], [repair], batch)
        shares = {
            "not_refused": 1 - refused[: len(attacks)].mean(),
            "benign_refused": refused[len(attacks) :].mean(),
        }
        return {name: float(share) for name, share in shares.items()}

    # -- trust -----------------------------------------------------------------------------------

    def curves(
        self, effects: Sequence[Mapping[str, Any]], neurons: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        """Faithfulness of the ranking of sites by their `effects`, and of that of `neurons`.

        A ranking of units that all together do nothing has no curve; the verdict then says that it
        wasn't tested.
        """
        config = self.config.curves
        if config is None:
            return []
        compared, batch = self._compared(), self.config.sites.batch_size
        sites, ranked = self._ranked(effects), _ranked_neurons(neurons)
        made = []
        for units, ranking, metric_with in (
            ("FFN and attention outputs", sites, compared.without_sites(self.vlm, sites, batch)),
            ("FFN neurons", ranked, compared.without_neurons(self.vlm, batch)),
        ):
            if len(ranking) < 2:
                continue
            with self.progress(f"faithfulness of {units}", steps(len(ranking), config)) as bar:
                try:
                    found = faithfulness(
                        ranking,
                        metric_with,
                        compared.goals,
                        config=config,
                        advance=bar.advance,
                    )
                except FitError:
                    continue
            made.append({"units": units, "metric": compared.metric} | found.to_json())
        return made

    def _compared(self) -> Compared:
        pairs = spread(self.pairs, self.config.pairs)
        if len(set(goals_of([pair.attack for pair in pairs]))) > 1:
            return Compared.of_pairs(pairs)
        attacks, benign = (spread(part, self.config.pairs) for part in (self.attacks, self.benign))
        return Compared(tuple(attacks), tuple(benign), paired=False)

    def _ranked(self, effects: Sequence[Mapping[str, Any]]) -> list[Site]:
        """FFN and attention outputs by how much cleaning them undoes; all of them if unknown."""
        size: dict[str, float] = {}
        for row in effects:  # the first metric counts
            size.setdefault(row["site"], abs(row["reversed_indirect"]["rate"]))
        return sorted(self._parts(), key=lambda site: -size.get(str(site), 0.0))


def complete(
    sites: Mapping[str, Any],
    effects: Sequence[Mapping[str, Any]],
    neurons: Mapping[str, Any] | None,
    curves: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The `diagnosis` tree of report.json from its parts, with what holds and what doesn't."""
    tree: dict[str, Any] = {
        **{name: part for name, part in sites.items() if name != "stability"},
        "causal": list(effects),
        "neurons": neurons,
        "trust": {"faithfulness": list(curves), "stability": sites["stability"]},
    }
    found = verdict(tree)
    return tree | {"supported": list(found.supported), "unsupported": list(found.unsupported)}


def _ranked_neurons(neurons: Mapping[str, Any] | None) -> list[Neuron]:
    """Verified neurons and controls by estimate, greatest first."""
    rows = [] if neurons is None else [*neurons["found"], *neurons["controls"]]
    return [
        (row["layer"], row["neuron"]) for row in sorted(rows, key=lambda r: -abs(r["estimate"]))
    ]


def _families_of_two(effects: Effects) -> Effects | None:
    """The effects on families of two goals or more; None if there is no second such family."""
    assert effects.families is not None
    goals: dict[str, set[str]] = {}
    for family, goal in zip(effects.families, effects.goals, strict=True):
        goals.setdefault(family, set()).add(goal)
    kept = [k for k, family in enumerate(effects.families) if len(goals[family]) > 1]
    names = tuple(effects.families[k] for k in kept)
    if len(set(names)) < 2:
        return None
    return Effects(effects.values[:, kept], tuple(effects.goals[k] for k in kept), names)


def _first_tokens(tried: Tried) -> dict[str, float]:
    return {"not_refused": tried.not_refused, "benign_refused": tried.benign_refused}
