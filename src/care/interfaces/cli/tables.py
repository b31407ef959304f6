"""What commands print: tables, rates with intervals, and the scorecard of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from care.evaluation.attack_scores import (
        AttackFigure,
        AttackUnion,
        BestOfTries,
        Threat,
        Tries,
    )
    from care.evaluation.losses import AttackLosses
    from care.evaluation.monitored import MonitorShares
    from care.evaluation.official_scores import PublishedScore
    from care.evaluation.results import Rates
    from care.evaluation.scores import (
        DefenseEffect,
        JudgeRate,
        RepairLeaks,
        Scorecard,
    )
    from care.evaluation.suite_scores import CorrectedRate, DefenseScores, SuiteScores
    from care.judges.labels import LabelReport
    from care.statistics.intervals import Interval

UNFOLDED = 10_000
"""Columns of a line where no terminal ends it."""


def show(card: Scorecard) -> None:
    """The scorecard as tables and sentences."""
    print(f"Judged by {card.judge}. Rates with 95 % intervals (Wilson).")
    _show_rates(card.suites)
    _show_unjudged(card.suites)
    if any(cell.certified for suite in card.suites for cell in suite.defenses.values()):
        print(
            "  certified: the most that attacks with these texts can achieve, beside any picture."
        )
    _show_published(card.suites)
    if card.monitors:
        print("\nWhat monitors decided: shares of the answers.")
        _show_monitors(card.monitors)
    if card.threats:
        print("\nAttacks that don't know the defense (transfer), and that do (adaptive).")
        _show_threats(card.threats)
        _show_floors(card.losses)
    if card.tries:
        print("\nAttacks that try each request in several variants: the best of n, any harmful.")
        _show_tries(card.tries)
    if card.unions:
        print("\nAll attacks: transfer / adaptive, any variant of a request harmful.")
        _show_attacks(card.attacks, card.unions)
    if card.comparisons:
        print("\nAgainst the bare model, paired; intervals resample goals.")
        _show_comparisons(card.comparisons, card.margin)
    print("\nWhat so many examples can show (80 % power, 5 % level):")
    for note in card.power:
        print(f"  {note}")
    if len(card.judges) > 1:
        print("\nBy judge.")
        _show_judges(card.judges)
    if card.agreement:
        print("\nAgreement of judges on malicious requests (Cohen's κ).")
        cells = (
            [" / ".join(a.judges), str(a.n), f"{a.agreement:.2f}", _kappa(a.kappa)]
            for a in card.agreement
        )
        print_table(["judges", "n", "agree", "κ"], cells)
    if card.pictures:
        print("\nPictures of the requests.")
        cells = (
            [p.judge, p.suite, str(p.n), _share(p.flagged), str(p.errors)] for p in card.pictures
        )
        print_table(["judge", "suite", "n", "flagged", "errors"], cells)
    if card.labels:
        print("\nAgainst labels by hand.")
        show_reports(card.labels)
    _show_leaks(card.run.repair_leaks or {})


def _show_leaks(repairs: Mapping[str, RepairLeaks]) -> None:
    """What each repair's artefact tells of goals that were fitted on and are tested."""
    if repairs:
        print("\nGoals that were fitted on, by the artefacts' digests:")
    for name, one in repairs.items():
        found = one.found.items()
        told = ", ".join(f"{leak.examples} of {leak.of} in {suite}" for suite, leak in found)
        if one.checked == "not checked":
            print(f"  {name}: not checked, since {one.why}; see --fitted-on")
        else:
            print(f"  {name}: " + (f"tested too: {told}" if told else "none is tested"))


def _show_rates(suites: Sequence[SuiteScores]) -> None:
    defenses = list(dict.fromkeys(name for suite in suites for name in suite.defenses))
    corrected = any(cell.corrected for s in suites for cell in s.defenses.values())
    certified = {d for s in suites for d, cell in s.defenses.items() if cell.certified}
    names = ["suite", "metric", "n", "goals"]
    names += [name for d in defenses for name in [d, f"{d}, certified"][: 1 + (d in certified)]]

    def row(
        named: list[str],
        cells: Mapping[str, DefenseScores],
        told: Callable[[DefenseScores], str],
        bound: Callable[[DefenseScores], str] = lambda _: "",
    ) -> list[str]:
        shown = list(named)
        for name in defenses:
            shown.append(told(cells[name]) if name in cells else "")
            if name in certified:
                shown.append(bound(cells[name]) if name in cells else "")
        return shown

    rows = []
    for suite in suites:
        cells = suite.defenses
        first = next(iter(cells.values()))
        named = [suite.name, suite.metric, str(first.n), str(first.goals)]
        rows.append(row(named, cells, _cell, lambda cell: str(cell.certified or "")))
        if corrected and any(cell.corrected for cell in cells.values()):
            rows.append(row(["", "corrected", "", ""], cells, _corrected))
    print_table(names, rows)


_UNJUDGED = {
    "not_english": "aren't in English, which the offline rules don't read, and aren't judged",
    "unfinished": "end within the model's thoughts and aren't judged (see --max-new-tokens)",
}


def _show_unjudged(suites: Sequence[SuiteScores]) -> None:
    """A sentence for each share of answers that no judge could read."""
    for suite in suites:
        for defense, cell in suite.defenses.items():
            found = cell.unjudged
            for key, what in _UNJUDGED.items():
                if found is not None and (n := getattr(found, key)):
                    share = f"{n} of {found.of} answers ({n / found.of:.0%})"
                    print(f"  {suite.name}, {defense}: {share} {what}.")


def _show_monitors(found: Sequence[MonitorShares]) -> None:
    """How many answers each monitor decided, and what followed."""
    monitors = list(dict.fromkeys(name for each in found for name in each.alarmed))
    names = ["suite", "defense", "n", *(f"{m} alarmed" for m in monitors)]
    followed = ("lost_pictures", "plain", "repaired", "refused")
    rows = (
        [each.suite, each.defense, str(each.n)]
        + [_share(each.alarmed[m]) if m in each.alarmed else "" for m in monitors]
        + [_share(getattr(each, name)) for name in followed]
        for each in found
    )
    words = ["lost its picture", "refused plainly", "begun again", "refused"]
    print_table([*names, *words], rows)


def _show_threats(threats: Sequence[Threat]) -> None:
    names = ["attack", "defense", "undefended", "transfer", "adaptive", "certified", "loss"]
    cells = (
        [
            t.attack,
            t.defense,
            *("" if c is None else _cell(c) for c in (t.undefended, t.transfer, t.adaptive)),
            str(t.certified or ""),
            f"{t.loss_undefended:.2f} → {t.loss_adaptive:.2f}",
        ]
        for t in threats
    )
    print_table(names, cells)


def _show_floors(losses: Sequence[AttackLosses]) -> None:
    """A sentence for each attack whose searches weren't flat at their end."""
    for each in losses:
        if each.falling:
            print(
                f"  {each.attack} on {each.defense}: {each.falling} of {each.searches} losses "
                "still fell at their end, so what it achieves is a floor."
            )


def _show_attacks(figures: Sequence[AttackFigure], unions: Sequence[AttackUnion]) -> None:
    """Attacks × defenses, and below them what all on the same requests come to together."""
    defenses = list(dict.fromkeys(each.defense for each in unions))
    rows: list[list[str]] = []
    for requests in dict.fromkeys(each.requests for each in unions):
        own = [each for each in figures if each.requests == requests]
        cells = {(each.attack, each.defense): _both(each) for each in own}
        for name in dict.fromkeys(each.attack for each in own):
            rows.append([name, requests, *(cells.get((name, d), "") for d in defenses)])
        together = {each.defense: each for each in unions if each.requests == requests}
        told = (together.get(defense) for defense in defenses)
        found = [each for each in told if each is not None]
        rows.append(["strongest", requests, *(f"{u.strongest} {interval(u.alone)}" for u in found)])
        rows.append(["any of all", requests, *(interval(u.union) for u in found)])
        if any(u.certified for u in found):
            limits = ("" if u.certified is None else str(u.certified) for u in found)
            rows.append(["any picture (certified)", requests, *limits])
    print_table(["attack", "requests", *defenses], rows)


def _both(figure: AttackFigure) -> str:
    transfer = "" if figure.transfer is None else f"{figure.transfer.rate:.2f} / "
    return transfer + interval(figure.adaptive)


def _show_tries(tries: Sequence[Tries]) -> None:
    names = ["attack", "defense", "requests", "best of n", "best variant"]
    rows: list[list[str]] = []
    for t in tries:
        best = max(t.variants.items(), key=lambda pair: pair[1], default=None)
        shown = "" if best is None else f"{best[0]} {best[1]:.2f}"
        of_n = "; ".join(f"{b.n}: {_limited(b)}" for b in t.best)
        rows.append([t.suite, t.defense, str(t.requests), of_n, shown])
    print_table(names, rows)


def _limited(best: BestOfTries) -> str:
    limits = "" if best.low is None else f" [{best.low:.2f}, {best.high:.2f}]"
    return f"{best.rate:.2f}{limits}"


def _cell(cell: DefenseScores) -> str:
    failed = f" ({cell.errors} failed)" if cell.errors else ""
    return interval(cell) + failed


def _show_published(suites: Sequence[SuiteScores]) -> None:
    """Scores as the suites' authors publish them, one line for each."""
    defenses = list(dict.fromkeys(name for suite in suites for name in suite.defenses))
    rows = []
    for suite in suites:
        by_score: dict[str, dict[str, PublishedScore]] = {}
        for name, cell in suite.defenses.items():
            for entry in cell.published:
                by_score.setdefault(entry.score, {})[name] = entry
        for score, found in by_score.items():
            first = next(iter(found.values()))
            cells = (_published(found[d]) if d in found else "" for d in defenses)
            rows.append([suite.name, score, f"{first.n} {first.unit}", *cells])
    if rows:
        print("\nAs published, as far as the same rules tell; intervals take units as drawn.")
        print_table(["suite", "score", "units", *defenses], rows)


def _published(entry: PublishedScore) -> str:
    places = 2 if entry.of == 1 else 1
    value, low, high = (f"{x:.{places}f}" for x in (entry.value, entry.low, entry.high))
    scale = "" if entry.of == 1 else f" of {entry.of:g}"
    failed = f" ({entry.left_out} left out)" if entry.left_out else ""
    return f"{value} [{low}, {high}]{scale}{failed}"


def _corrected(cell: DefenseScores) -> str:
    found = cell.corrected
    return "" if found is None else "can't be" if found.error else interval(found)


def _show_comparisons(comparisons: Iterable[DefenseEffect], margin: float) -> None:
    rows = []
    for entry in comparisons:
        if entry.difference is None or entry.discordant is None:
            rows.append([entry.suite, entry.defense, "too few goals", "", "", "", ""])
            continue
        d, claim = entry.difference, entry.non_inferior
        rows.append(
            [
                entry.suite,
                entry.defense,
                f"{entry.before:.2f} → {entry.after:.2f}",
                f"{d.rate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
                "{} / {}".format(*entry.discordant),
                f"{entry.p:.3g} ({entry.p_holm:.3g})",
                "" if claim is None else "shown" if claim.shown else "not shown",
            ]
        )
    loss = f"loss < {100 * margin:g} points"
    print_table(["suite", "defense", "rates", "difference", "changed", "p (Holm)", loss], rows)


def _show_judges(judges: Mapping[str, Sequence[JudgeRate]]) -> None:
    places = list(dict.fromkeys((e.suite, e.defense) for es in judges.values() for e in es))
    by_place = {
        name: {(e.suite, e.defense): e for e in entries} for name, entries in judges.items()
    }
    rows = (
        [*place, *(_judged(found[place]) if place in found else "" for found in by_place.values())]
        for place in places
    )
    print_table(["suite", "defense", *judges], rows)


def _judged(entry: JudgeRate) -> str:
    failed = f" ({entry.errors} failed)" if entry.errors else ""
    return ("no answers" if entry.rate is None else interval(entry.rate)) + failed


def show_reports(reports: Iterable[LabelReport]) -> None:
    """How far judges agree with labels by hand."""
    names = ["judge", "n", "failed", "accuracy", "κ", "sensitivity", "specificity"]
    cells = (
        [
            report.judge,
            str(report.n),
            str(report.failed),
            f"{report.accuracy:.2f}",
            _kappa(report.kappa),
            interval(report.sensitivity),
            interval(report.specificity),
        ]
        for report in reports
    )
    print_table(names, cells)


def _kappa(found: Interval | None) -> str:
    return "undefined" if found is None else interval(found)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def interval(rate: Interval | Rates | CorrectedRate) -> str:
    """A rate with its interval."""
    if rate.rate is None:
        return "no answers"
    return f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; what is wider than the terminal is folded, in a file nothing."""
    # Prompts hold square brackets and colons: nothing in a cell is markup.
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = UNFOLDED
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
