"""The parts of a whole diagnosis: sites, causal effects, neurons, and how far to trust them.

What the parts compute is in their own modules; here is which examples each gets and how the
answers of one are asked of the next:

    sites      every part of every layer removed, alone and in windows (`site_scan`)
    effects    TE, NDE, NIE of each kind of pairs through FFN and attention (`causal_mediation`)
    neurons    all FFN neurons estimated, the best verified, the fewest that mend it (`neurons`)
    curves     do rankings beat random ones (`faithfulness`)

Each part gives a result that can be stored, so that a killed job goes on after the last one; the
scan of the sites goes on after its last row. Without pairs, effects aren't taken and neurons are
compared with their means. Put together they are `care.diagnosis.full.diagnose`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from care.data.example import Example
from care.data.minimal_pairs import Pair, by_kind
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.repair import Repair
from care.diagnosis.activation_means import goals_of, spread
from care.diagnosis.causal_mediation import site_effects
from care.diagnosis.channel_scan import refused_under
from care.diagnosis.faithfulness import Faithfulness, faithfulness, steps
from care.diagnosis.faithfulness_runs import Compared, KeptRuns
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.measures import first_token, refusal_contrast, refusal_log_odds
from care.diagnosis.neurons.attribution_patching import estimate
from care.diagnosis.neurons.interventions import against_means, between_pairs, neuron_means
from care.diagnosis.neurons.results import FirstTokens, NeuronReport, SuppressionReport
from care.diagnosis.neurons.search import find_neurons
from care.diagnosis.neurons.suppression_search import (
    RULE,
    Tried,
    rank_for_suppression,
    search_neurons,
)
from care.diagnosis.reliability import Agreement
from care.diagnosis.results import SitesFound
from care.diagnosis.scan import ScanRow
from care.diagnosis.site_reliability import SiteReliability
from care.diagnosis.site_results import Rescan, SiteEffects
from care.diagnosis.site_scan import scan_sites
from care.errors import FitError, SiteError
from care.models.sites import Neuron, Scope, Site
from care.models.vlm import VLM
from care.runs.kept_batches import KeptBatches
from care.runs.progress import Bar, silent

if TYPE_CHECKING:
    from care.judges.rules import RulesJudge

_DECISION: tuple[Scope, ...] = ("decision",)


class DiagnosisParts:
    """The parts of one diagnosis; see the header of the module."""

    def __init__(
        self,
        vlm: VLM,
        attacks: Sequence[Example],
        benign: Sequence[Example],
        *,
        pairs: Sequence[Pair] = (),
        validation: tuple[Sequence[Example], Sequence[Example]] = ((), ()),
        config: DiagnosisConfig | None = None,
        judge: RulesJudge | None = None,
        progress: Bar | None = None,
    ) -> None:
        """`validation` are attacks and benign requests with other goals, for neuron suppression."""
        self.vlm, self.config, self.judge = vlm, config or DiagnosisConfig(), judge
        self.attacks, self.benign = list(attacks), list(benign)
        self.pairs = list(pairs)
        self.validation = tuple(list(part) for part in validation)
        self.progress = progress or silent

    # -- sites -----------------------------------------------------------------------------------

    def sites(
        self, done: Iterable[ScanRow] = (), keep: Callable[[ScanRow], None] | None = None
    ) -> SitesFound:
        """The scan of the sites, with the stability of their effects."""
        found = scan_sites(
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
        looks = SiteReliability(
            self.vlm,
            found.changes,
            self.config.sites,
            self.config.stability,
            progress=self.progress,
        )
        rows: list[Agreement | None] = [*looks.parts()]
        again: tuple[Rescan, Agreement] | None = None
        if self.config.reseeded:
            rows.append(looks.redrawn(self.attacks, self.benign, self.config.reseeded))
        if self.config.rescanned:
            how, many = self.config.second, self.config.rescanned
            again = looks.rescan(self.attacks, self.benign, how, many)
            rows.append(None if again is None else again[1])
        return SitesFound.of(
            found,
            stability=tuple(row for row in rows if row is not None),
            rescan=None if again is None else again[0],
        )

    # -- effects ---------------------------------------------------------------------------------

    def effects(self, kept: KeptBatches | None = None) -> tuple[SiteEffects, ...]:
        """Causal effects of each kind of pairs through every FFN and attention output.

        Batches that are `kept` aren't asked again.

        Of kinds with pairs of at least two goals; of the first kind by two metrics, of others by
        the first token alone, which is many times as cheap.
        """
        kinds = list(by_kind(self.pairs).items())[: self.config.pair_kinds]
        asked = {name: spread(pairs, self.config.pairs) for name, pairs in kinds}
        asked = {name: pairs for name, pairs in asked.items() if _several_goals(pairs)}
        measures = [first_token(refusal_log_odds(self.vlm))]
        if self.config.contrast:
            measures.append(refusal_contrast(self.vlm))
        sites, found = self._parts(), list[SiteEffects]()
        many = sum(len(pairs) for pairs in asked.values()) * len(sites)
        with self.progress("causal effects", many) as bar:
            for name, pairs in asked.items():
                rows = site_effects(
                    self.vlm,
                    pairs,
                    sites,
                    measures=measures[: None if not found else 1],
                    config=self.config.effects,
                    advance=bar.advance,
                    kept=kept,
                )
                found += [replace(row, pairs=name) for row in rows]
        return tuple(found)

    @property
    def _first_kind(self) -> tuple[str, list[Pair]]:
        """The first kind of pairs, which neurons and curves are of; they need one behaviour."""
        return next(iter(by_kind(self.pairs).items()), ("", []))

    def _parts(self) -> list[Site]:
        """Every FFN and attention output."""
        return [*self.vlm.anatomy.sites("ffn_out"), *self.vlm.anatomy.sites("mhsa_out")]

    # -- neurons ---------------------------------------------------------------------------------

    @property
    def reaches_neurons(self) -> bool:
        """Whether the model's neurons can be looked for; warns where they can't."""
        try:
            return self.vlm.anatomy.neurons.total > 0
        except SiteError as error:
            warnings.warn(f"{error} They are left out of the diagnosis.", stacklevel=2)
            return False

    def neurons(
        self,
        rival: Repair | None = None,
        save: Callable[[NeuronSuppression], Any] | None = None,
        kept: KeptBatches | None = None,
    ) -> NeuronReport:
        """The neurons that carry the pairs' difference (without pairs: the attacks), and which of
        them to suppress.

        They are estimated on one half of the prompts and verified on the other. `rival` is a repair
        to compare neuron suppression with, on the same requests; `save` gets that suppression, or
        where there is none the set that comes closest.
        """
        many = self.config.neuron_prompts
        kind, pairs = self._first_kind
        if len(pairs) >= 4:
            asked = spread(pairs, many)
            scopes = self.config.neuron_scopes
            question, verify = (between_pairs(asked[part::2], scopes=scopes) for part in (0, 1))
        else:
            kind = ""
            attacks, benign = spread(self.attacks, many), spread(self.benign, many)
            means = neuron_means(self.vlm, benign)
            question, verify = (
                against_means(
                    self.vlm, attacks[part::2], benign[part::2], scopes=_DECISION, means=means
                )
                for part in (0, 1)
            )
        found = find_neurons(
            self.vlm,
            question,
            verify=verify,
            config=self.config.neurons,
            progress=self.progress,
            kept=kept,
        )
        return replace(found, pairs=kind, repair=self._suppression(rival, save))

    def _suppression(
        self, rival: Repair | None, save: Callable[[NeuronSuppression], Any] | None
    ) -> SuppressionReport | None:
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
            ranking = rank_for_suppression(
                first, estimate(self.vlm, seen.control, advance=bar.advance)
            )
        if not ranking:
            return None
        sets = 2 * math.ceil(math.log2(self.config.repair_most)) + 34  # at most
        with self.progress("neuron suppression", sets * (len(attacks) + len(benign))) as bar:
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
        chosen = search.chosen.neurons if search.chosen else ()
        made = search.chosen or search.closest
        if made is not None and save is not None:
            save(made)
        return SuppressionReport(
            rule=RULE,
            neurons=tuple(chosen),
            before=_first_tokens(search.before),
            after=_first_tokens(search.after),
            subspace=None if rival is None else self._rates(rival, attacks, benign),
        )

    def _rates(
        self, repair: Repair, attacks: Sequence[Example], benign: Sequence[Example]
    ) -> FirstTokens:
        batch = self.config.sites.batch_size
        [refused] = refused_under(self.vlm, [*attacks, *benign], [repair], batch)
        return FirstTokens(
            not_refused=float(1 - refused[: len(attacks)].mean()),
            benign_refused=float(refused[len(attacks) :].mean()),
        )

    # -- trust -----------------------------------------------------------------------------------

    def curves(
        self, effects: Sequence[SiteEffects], neurons: NeuronReport | None
    ) -> tuple[Faithfulness, ...]:
        """Faithfulness of the ranking of sites by their `effects`, and of that of `neurons`.

        A ranking of units that all together do nothing has no curve; the verdict then says that it
        wasn't tested.
        """
        config = self.config.curves
        if config is None:
            return ()
        compared, batch = self._compared(), self.config.sites.batch_size
        sites, ranked = self._ranked(effects), _ranked_neurons(neurons)
        kept = KeptRuns(self.vlm, compared.examples, batch)  # of both, so that it is there once
        made: list[Faithfulness] = []
        for units, ranking, removing in (
            ("FFN and attention outputs", sites, partial(compared.without_sites, sites=sites)),
            ("FFN neurons", ranked, compared.without_neurons),
        ):
            if len(ranking) < 2:
                continue
            metric_with = removing(self.vlm, batch_size=batch, kept=kept)
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
            made.append(replace(found, units=units, metric=compared.metric))
        return tuple(made)

    def _compared(self) -> Compared:
        pairs = spread(self._first_kind[1], self.config.pairs)
        if _several_goals(pairs):
            return Compared.of_pairs(pairs)
        attacks, benign = (spread(part, self.config.pairs) for part in (self.attacks, self.benign))
        return Compared(tuple(attacks), tuple(benign), paired=False)

    def _ranked(self, effects: Sequence[SiteEffects]) -> list[Site]:
        """FFN and attention outputs by how much cleaning them undoes; all of them if unknown."""
        size: dict[str, float] = {}
        for row in effects:  # the first metric, and the first kind of pairs, count
            size.setdefault(row.site, abs(row.reversed_indirect.rate))
        return sorted(self._parts(), key=lambda site: -size.get(str(site), 0.0))


def _ranked_neurons(neurons: NeuronReport | None) -> list[Neuron]:
    """Verified neurons and controls by estimate, greatest first."""
    rows = [] if neurons is None else [*neurons.found, *neurons.controls]
    return [row.key for row in sorted(rows, key=lambda r: -abs(r.estimate))]


def _several_goals(pairs: Sequence[Pair]) -> bool:
    return len(set(goals_of([pair.attack for pair in pairs]))) > 1


def _first_tokens(tried: Tried) -> FirstTokens:
    return FirstTokens(tried.not_refused, tried.benign_refused)
