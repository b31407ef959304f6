"""An ablation on a tiny model: every row is fitted as it says, and a killed job goes on."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest

from care.defenses.monitors.results import READS
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import SubspaceConfig
from care.diagnosis.results import Diagnosis
from care.evaluation import runner
from care.evaluation.ablation_table import AblationRow, AblationTable, AgainstMethod
from care.interfaces.cli.app import main
from care.models.sites import Site
from care.pipeline import ablation
from care.pipeline.ablation import ablate, claims
from care.pipeline.ablation_rows import CHANGES, Change
from care.report.ablation import SCHEMA, TITLE, write_ablation
from care.statistics.intervals import Interval
from care.typed import from_tree
from kit.jobs import a_job, files, tiny_parts  # noqa: F401
from kit.reports import report_tree

FEW = {"test_length": 6, "batch_size": 8, "max_new_tokens": 4}
RANK = SubspaceConfig(target="cov", rank=2)
SMALL = (
    Change("paper", "paper", {"subspace": RANK}),
    Change("corrected", "corrected"),
    Change("paper: attention", "paper", {"subspace": RANK}, kind="mhsa_out"),
    Change("paper: K", "paper", {"subspace": SubspaceConfig(target="cov", rank=1000)}),
    Change("corrected: without text", "corrected", only="image"),
    Change("corrected: one layer", "corrected", one_layer=True),
    Change("corrected: monitors", "corrected", watched=READS),
    Change("corrected: requests", "corrected", watched=("request",), channels=False),
    Change("corrected: apart", "corrected", watched=READS, without=("elsewhere",)),
)


def test_every_row_changes_one_thing_of_a_preset_that_is_a_row() -> None:
    names = [change.name for change in CHANGES]
    assert len(set(names)) == len(names)
    assert {change.beside or change.of for change in CHANGES} <= set(names)
    for change in CHANGES:
        whole = change.name == change.of
        differs = [
            change.config.facts() != PRESETS[change.of].facts(),
            change.one_layer,
            change.only is not None,
            bool(change.watched) and not change.without,
            bool(change.without),
        ]
        assert sum(differs) == (0 if whole else 1), change.name
    fields = {name for change in CHANGES for name in change.fields}
    assert {"attribution", "beta", "strength", "projection", "fusion", "gate"} <= fields


def test_a_rows_sites_are_those_of_its_preset_elsewhere_or_fewer() -> None:
    sites = {"image": [Site(3, "layer_out"), Site(1, "layer_out")], "text": []}
    assert Change("a", "corrected").places(sites) == sites
    moved = Change("b", "corrected", kind="ffn_out", one_layer=True)
    assert moved.places(sites) == {"image": [Site(3, "ffn_out")], "text": []}
    assert (moved.config.kind, moved.config.fit_kind) == ("ffn_out", None)


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_ends_with_the_same_table(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = ablate(a_job(tmp_path / "whole", **FEW, **files), changes=SMALL)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["none", *(change.name for change in SMALL)]
    assert rows["paper: K"].failed and "rank 1000 is more than" in rows["paper: K"].failed
    assert rows["paper: attention"].against is not None
    assert "suite elsewhere" in str(rows["corrected: apart"].failed)
    made = {
        name: Repair.load(tmp_path / "whole" / "repairs" / name)
        for name in (
            "paper",
            "paper-attention",
            "corrected",
            "corrected-without-text",
            "corrected-one-layer",
        )
    }
    assert {site.kind for site in made["paper-attention"].sites} == {"mhsa_out"}
    layers = [{site.layer for site in made[name].sites} for name in ("paper", "paper-attention")]
    assert layers[0] == layers[1]
    assert {c.modality for c in made["corrected-without-text"].channels} == {"image"}
    assert len(made["corrected-one-layer"].channels) == 2
    watched = Repair.load(tmp_path / "whole" / "repairs" / "corrected-monitors")
    alone = Repair.load(tmp_path / "whole" / "repairs" / "corrected-requests")
    assert watched.monitors[0].reads == "request" and watched.channels
    assert {each.reads for each in alone.monitors} == {"request"} and not alone.channels

    fitted, fits, asked = ablation.fitted, [], []

    def once(change, *rest):
        fits.append(change.name)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fitted(change, *rest)

    monkeypatch.setattr(ablation, "fitted", once)
    job = a_job(tmp_path / "killed", **FEW, **files)
    with pytest.raises(KeyboardInterrupt):
        ablate(job, changes=SMALL)
    work = runner._judge
    monkeypatch.setattr(runner, "_judge", lambda *a: asked.append(1) or work(*a))
    resumed = a_job(tmp_path / "killed", resume=True, **FEW, **files)
    assert ablate(resumed, changes=SMALL) == table
    assert fits[2:] == ["paper: attention", "paper: attention", *(c.name for c in SMALL[3:-1])]
    count = len(asked)
    assert ablate(resumed, changes=SMALL) == table
    assert len(asked) == count > 0

    page = write_ablation(table, tmp_path / "whole")
    tree = json.loads(page.with_suffix(".json").read_text())
    assert (tree.pop("schema"), tree.pop("title")) == (SCHEMA, TITLE)
    assert from_tree(AblationTable, tree, "ablation") == table
    html = page.read_text()
    assert "not fitted: rank 1000 is more than" in html
    assert all(change.name in html for change in SMALL)
    assert all(claim in unescape(html) for claim in table.claims)
    written = page.with_suffix(".md").read_text().splitlines()
    assert len([line for line in written if line.startswith("| ")]) == len(table.rows) + 1
    assert written[-len(table.claims) :] == [f"- {claim}" for claim in table.claims]
    monkeypatch.setattr(ablation, "ablate", lambda job, progress: table)
    assert main(["ablate", "--out", str(tmp_path / "told")]) == 0
    said = capsys.readouterr().out
    assert "paper: attention" in said and table.claims[0] in said and "ablation.html" in said


def row_with(name: str, low: float, p_holm: float) -> AblationRow:
    against = AgainstMethod(Interval(low + 0.1, low, low + 0.2), p_holm, p_holm)
    rate = Interval(0.5, 0.4, 0.6)
    return AblationRow(name, "corrected", None, {}, rate, None, None, 0.0, against)


def test_claims_say_what_was_found_and_what_was_not() -> None:
    diagnosis = from_tree(Diagnosis, report_tree()["diagnosis"], "diagnosis")
    rows = [
        row_with("corrected: without text", 0.05, 0.01),
        row_with("corrected: without visual", -0.05, 0.4),
    ]
    text, visual, *others = claims(rows, diagnosis)
    assert "lets +15 points [+5, +25] more" in text and text.endswith("is found here.")
    assert visual.endswith("is not found here.")
    kinds = [row for row in diagnosis.comparison if row.matched_by == "kind"]
    assert len(others) == len(kinds) + len(diagnosis.rank_correlation) > 1
    ffn = others[0]
    assert ffn.endswith("is found here." if kinds[0].survives else "is not found here.")
    for sentence, rho in zip(
        others[len(kinds) :], diagnosis.rank_correlation.values(), strict=True
    ):
        assert ("not found" in sentence) == (rho.low <= 0)
    unsure = [row_with("corrected: without text", 0.05, 0.2)]
    assert claims(unsure, diagnosis)[0].endswith("is not found here.")
