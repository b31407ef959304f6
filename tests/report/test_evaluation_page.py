"""The page of an evaluation: what it shows is what table.json says, and nothing else is needed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from html import unescape

import pytest

from care.errors import DataError
from care.evaluation.scores import Scorecard
from care.report.evaluation import load_card, page_of
from care.report.numbers import number, p_value, percent, points
from care.typed import from_tree, to_tree
from kit.cards import DEFENSES, made_card, write_card
from kit.pages import Page, at

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x>"


def page(folder, card=None):
    return page_of(write_card(folder, card)).read_text(encoding="utf-8")


def text(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_a_table_is_read_as_it_was_written(tmp_path):
    file = write_card(tmp_path)
    assert load_card(file) == made_card() == from_tree(Scorecard, json.loads(file.read_text()))
    assert page_of(file) == tmp_path / "report.html"
    assert sha256(file.read_bytes()).hexdigest() in (tmp_path / "report.html").read_text()


def test_every_number_is_that_of_the_table(tmp_path):
    shown = Page(page(tmp_path)).values
    tree = json.loads((tmp_path / "table.json").read_text())
    assert len(shown) > 300
    for key, words in shown.items():
        if "|" in key:
            suite, defense, outcome = key.split("|")
            (cells,) = (s["defenses"] for s in tree["suites"] if s["name"] == suite)
            assert int(words) == cells[defense]["outcomes"][outcome]
            continue
        value = at(tree, key)
        wanted = percent(value)
        if ".difference." in key:
            wanted = points(100 * value)
        elif ".discordant." in key:
            wanted = str(value)
        elif key.startswith("comparisons."):
            wanted = p_value(value)
        elif key.startswith("losses."):
            wanted = number(value)
        assert words == wanted, key


@pytest.mark.parametrize(
    "start",
    [
        *(f"suites.{place}.defenses.care.rate" for place in range(3)),
        "suites.0.defenses.care.certified.high",
        "suites.0.defenses.care.by_goal.low",
        "comparisons.0.difference.low",
        "comparisons.0.discordant.1",
        "comparisons.0.p_holm",
        "threats.0.transfer.rate",
        "threats.2.adaptive.high",
        "threats.2.certified.rate",
        "attacks.0.adaptive.rate",
        "unions.3.union.rate",
        "unions.3.alone.rate",
        "unions.3.certified.high",
        "tries.0.best.0.rate",
        "losses.1.curves.0.loss",
        "monitors.0.alarmed.request",
        "monitors.0.refused",
        "judges.other.0.rate.rate",
    ],
)
def test_every_part_of_the_table_is_on_the_page(tmp_path, start):
    assert start in Page(page(tmp_path)).values


def test_every_section_is_reached_and_every_chart_named(tmp_path):
    shown = Page(page(tmp_path))
    ids = {a["id"] for _, a in shown.tags if "id" in a}
    for address in shown.addresses():
        assert address.startswith("#") and address[1:] in ids
    sections = [a["id"] for tag, a in shown.tags if tag == "section"]
    linked = [address[1:] for address in shown.addresses()]
    assert sections == [name for name in dict.fromkeys(linked) if name in sections]
    charts = [a for tag, a in shown.tags if tag == "svg"]
    assert len(charts) >= 7 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    heads = [a for tag, a in shown.tags if tag == "th"]
    assert all(a.get("scope") in ("col", "row") for a in heads)


def test_what_a_reader_must_know_is_said(tmp_path):
    said = text(page(tmp_path))
    assert "Nearly all answers are degenerate." in said
    assert "Under care any of 2 attacks wins 16.7% of the requests goals in the text" in said
    assert "a floor: 1 of 3 losses still fell" in said and "That is so for pgd-32." in said
    assert "Where a defense has monitors the bare model's answer decides" in said
    assert "Evaluation of org/model" in said
    suites = re.findall(r'<tr><th scope="row">([^<]+)', page(tmp_path))
    assert suites[:3] == ["direct", "lookalike", "vqa"]  # not those that attacks ask


def test_parts_that_were_not_measured_have_no_section(tmp_path):
    plain = replace(
        made_card(), threats=(), tries=(), attacks=(), unions=(), losses=(), monitors=(), labels=(),
        suites=tuple(
            replace(s, defenses={n: s.defenses[n] for n in ("none", "care")})
            for s in made_card().suites if " on " not in s.name
        ),
        judges={"rules": made_card().judges["rules"]}, agreement=(),
    )  # fmt: skip
    shown = Page(page(tmp_path, plain))
    sections = [a["id"] for tag, a in shown.tags if tag == "section"]
    assert sections == ["rates", "tests", "outcomes", "limits", "run"]
    flat = replace(made_card(), losses=made_card().losses[:1])
    assert "Here all were flat." in text(page(tmp_path, flat))


def test_strings_are_escaped_and_nothing_is_loaded(tmp_path):
    tree = json.loads(
        json.dumps(to_tree(made_card())).replace("openings", "§").replace("lookalike", "¤")
    )
    evil = json.dumps(tree, ensure_ascii=False)
    for mark in "§¤":
        evil = evil.replace(mark, json.dumps(EVIL)[1:-1])
    (tmp_path / "table.json").write_text(evil, encoding="utf-8")
    html = page_of(tmp_path / "table.json").read_text(encoding="utf-8")
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert "default-src 'none'" in html and "@import" not in html and "url(http" not in html


def test_beside_a_main_jobs_report_it_has_a_name_of_its_own(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "report.html").write_text("of the main job")
    assert page_of(write_card(tmp_path)) == tmp_path / "table.html"
    assert (tmp_path / "report.html").read_text() == "of the main job"


def test_what_is_no_table_is_refused(tmp_path):
    tree = to_tree(made_card())
    tree["suites"][0]["defenses"]["care"]["rate"] = 2.0
    (tmp_path / "table.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"table\.json can't be used: `suites\[0\]\.defenses\.care"):
        page_of(tmp_path / "table.json")
    assert not (tmp_path / "report.html").exists()


def test_a_suite_that_failed_whole_is_told(tmp_path):
    first = made_card().suites[0]
    cell = replace(
        first.defenses["care"], rate=None, low=None, high=None, n=0, errors=12, by_goal=None,
        outcomes=dict.fromkeys(first.defenses["care"].outcomes, 0), certified=None,
    )  # fmt: skip
    suite = replace(first, defenses=first.defenses | {"care": cell})
    html = page(tmp_path, replace(made_card(), suites=(suite, *made_card().suites[1:])))
    assert "all failed" in html and "suites.0.defenses.care.rate" not in Page(html).values
    assert [name for name in DEFENSES if f"suites.0.defenses.{name}.rate" in html] == [
        *DEFENSES[:3]
    ]
