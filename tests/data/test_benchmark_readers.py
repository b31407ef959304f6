"""What each published suite is made into, on small copies of its real layout."""

import re
import zipfile

import pytest

from care import load_suite
from care.data.benchmarks import pictured_requests, visual_questions
from care.data.typography import published_figstep
from care.errors import DataError
from care.judges.answer_matching import correct
from kit import suite_copies as copies
from kit.refusals import refused
from kit.suite_copies import changed, folder, load, own_cache  # noqa: F401


def test_jailbreakv_runs_the_rows_that_need_no_picture(folder):
    found = copies.make("jailbreakv")
    found.write(folder)
    (folder / found.pictures[0]).unlink()
    (folder / found.pictures[1]).unlink()
    with pytest.warns(UserWarning, match=r"1 of 2 rows as text alone, 1 left out.*docs\.google"):
        suite = load_suite("jailbreakv", path=folder)
    (example,) = suite
    assert (example.id, example.images) == ("0", ())
    assert (example.prompt, example.goal) == ("You are Bob. Bob, bake a cake.", "Bake a cake.")
    assert example.category == "Fraud/Template"
    assert "1 of 2 rows as text alone" in suite.version
    whole = load_suite("jailbreakv", path=found.write(folder / "whole"))
    assert whole.version == "1" and whole.digest() != suite.digest()


def test_jailbreakv_says_what_to_fetch_where_nothing_is_left(folder, tmp_path):
    found = copies.make("jailbreakv-mini")
    del found.rows()[0]
    found.pictures = []
    with pytest.raises(DataError, match=r"No row .* llm_transfer_attack and query_related into"):
        load_suite("jailbreakv-mini", path=found.write(folder))
    copies.write_picture(tmp_path / "cache/suites/jailbreakv/figstep/figstep_1.png")
    assert len(load_suite("jailbreakv-mini", path=folder)) == 1


@pytest.mark.parametrize(
    ("variant", "opening"),
    [("", "The bottom"), ("-typo", "The bottom"), ("-sd", "The image"), ("-text", "List steps")],
)
def test_mm_safetybench_pairs_prompts_with_pictures(variant, opening, folder):
    suite = load(f"mm-safetybench{variant}", folder)
    first = suite.examples[0]
    assert first.prompt.startswith(opening)
    assert first.goal == "List steps to bake 0 01-Illegal_Activitiy cakes"
    assert (first.id, first.category) == ("01-0", "Illegal_Activitiy")
    assert len({e.category for e in suite}) == 13
    assert len(first.images) == (variant != "-text")


def test_mm_safetybench_keeps_the_eight_harmful_scenarios_apart(folder):
    suite = load("mm-safetybench-harmful", folder)
    numbers = {e.id.split("-")[0] for e in suite}
    assert numbers == {"01", "02", "03", "04", "05", "06", "07", "09"}
    assert {e.category for e in suite} == set(pictured_requests.HARMFUL)


def test_mm_safetybench_reads_the_mirror(folder):
    for scenario in pictured_requests.SCENARIOS:
        for variant, question in (("Text_only", "Bake cakes"), ("SD", "The image shows it")):
            rows = [{"id": n, "question": f"{question} {n}"} for n in range(2)]
            for row in rows:
                row["image"] = None if variant == "Text_only" else copies.in_parquet(row["id"])
            copies.write_table(folder / f"data/{scenario}/{variant}.parquet", rows)
    suite = load_suite("mm-safetybench-sd", path=folder)
    assert len(suite) == 26
    first = suite.examples[0]
    assert (first.id, first.prompt, first.goal) == ("01-0", "The image shows it 0", "Bake cakes 0")
    assert first.load_images()[0].size == (8, 6)
    plain = load_suite("mm-safetybench-text", path=folder).examples[0]
    assert (plain.prompt, plain.goal, plain.images) == ("Bake cakes 0", "Bake cakes 0", ())
    orphan = [{"id": 5, "question": "The image", "image": copies.in_parquet()}]
    copies.write_table(folder / "data/Fraud/SD.parquet", orphan)
    with pytest.raises(DataError, match="Fraud has no row with the id '5'"):
        load_suite("mm-safetybench-sd", path=folder)


def test_figstep_pictures_are_drawn(folder):
    suite = load("figstep", folder)
    first = suite.examples[0]
    assert (first.id, first.category) == ("1-1", "Topic 1")
    assert first.prompt.startswith("The image shows a list numbered 1, 2, and 3")
    assert first.goal == "How does one fold hat 1?"
    drawn = published_figstep("Steps to fold the paper hat number 1.")
    assert first.load_images()[0].tobytes() == drawn.tobytes()
    assert "pictures in " in suite.version


def test_figstep_takes_the_authors_pictures(folder, tmp_path):
    for topic in (1, 2):
        for task in (1, 2):
            copies.write_picture(tmp_path / "theirs" / f"query_MadeUpQI_{topic}_{task}_6.png")
    suite = load("figstep", folder, images=tmp_path / "theirs")
    assert suite.version == "1"
    assert suite.examples[0].load_images()[0].size == (8, 6)
    (tmp_path / "theirs" / "query_MadeUpQI_2_2_6.png").unlink()
    with pytest.raises(DataError, match=r"query_MadeUpQI_2_2_6\.png isn't in"):
        load_suite("figstep", path=folder, images=tmp_path / "theirs")


def test_advbench_calls_a_request_by_its_text(folder):
    found = copies.make("advbench")
    found.rows().append(dict(found.rows()[0]))
    suite = load_suite("advbench", path=found.write(folder))
    first, last = suite.examples[0], suite.examples[-1]
    assert re.fullmatch("[0-9a-f]{12}", first.id)
    assert last.id == f"{first.id}-2" and last.prompt == first.prompt


def test_harmbench_asks_after_the_context(folder):
    standard, contextual, copyrighted = load("harmbench", folder)
    assert standard.prompt == standard.goal == "Bake cake 0"
    assert contextual.prompt == "A recipe.\n\nFlour and water.\n\n---\n\nBake cake 1"
    assert contextual.goal == "Bake cake 1"
    assert copyrighted.category == "copyright/baking"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("vlguard-unsafe", "Bake this cake."),
        ("vlguard-safe-unsafe", "Burn this cake."),
        ("vlguard-safe", "What cake is this?"),
    ],
)
def test_vlguard_tells_its_subsets_apart(name, asked, folder):
    assert [e.prompt for e in load(name, folder)] == [asked]


def test_vlguard_pictures_are_unpacked(folder, tmp_path):
    found = copies.make("vlguard-safe")
    found.write(folder)
    with zipfile.ZipFile(folder / "test.zip", "w") as archive:
        for picture in found.pictures:
            archive.write(folder / picture, picture)
            (folder / picture).unlink()
    (example,) = load_suite("vlguard-safe", path=folder)
    assert example.images[0].is_relative_to(tmp_path / "cache")
    assert load_suite("vlguard-safe", path=folder).examples == (example,)
    (folder / "test.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="isn't a whole zip archive"):
        load_suite("vlguard-safe", path=folder)


def test_toxicity_has_its_challenging_part(folder):
    whole = load("real-toxicity-prompts", folder)
    assert [e.category for e in whole] == ["challenging", "other", "other"]
    (hard,) = load_suite("rtp-challenging", path=folder)
    assert (hard.id, hard.prompt) == ("0000-abc-0", "The cake number 0 was so")


def test_mmbench_shifts_belong_together(folder):
    suite = load("mmbench", folder)
    first, second, shifted = suite
    assert [e.id for e in suite] == ["7-0", "9-0", "7-1"]
    assert first.prompt == (
        "Which cake is this?\nA. sponge\nB. carrot\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.prompt.startswith("Look.\nWhich cake is this?\nA. round\nB. square\nC. flat\n")
    assert first.references == ("A", "sponge") and shifted.references == ("B", "sponge")
    assert first.load_images()[0].tobytes() == shifted.load_images()[0].tobytes()
    assert [e.id for e in load("mmbench-plain", folder)] == ["7-0", "9-0"]
    both = {load_suite("mmbench", path=folder, limit=1, seed=s).examples for s in range(9)}
    assert {tuple(e.id for e in found) for found in both} == {("7-0", "7-1"), ("9-0",)}
    right = {"7-0": True, "7-1": False, "9-0": True}
    assert visual_questions.circular(right) == {"7": False, "9": True}


NOWHERE = "row 3: column 'image' must be a picture or the index"


@pytest.mark.parametrize(
    ("name", "row", "cells", "message"),
    [
        ("harmbench", 0, {"FunctionalCategory": "new"}, "must be one of standard, contextual"),
        ("vlsafe", 0, {"image_id": "../secret.jpg"}, "leads out of its folder"),
        ("vlguard-safe", 0, {"instr-resp": [{}]}, "an object that has 'safe_instruction'"),
        ("scienceqa", 0, {"answer": 2}, "the answer is option 3, but there are 2"),
        ("mmbench", 0, {"answer": "D"}, "'answer' must be one of A, B"),
        *(("mmbench", 2, {"image": n}, NOWHERE) for n in ("8", "7777777", "cake", "1000007")),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused(name, row, cells, message, folder):
    table = changed(name, folder, lambda rows: rows[row].update(cells))
    with refused(DataError, message) as caught:
        load_suite(name, path=folder)
    assert name == "vlsafe" or str(table) in str(caught.value)  # there it is the path that is named


def test_scienceqa_with_and_without_pictures(folder):
    (pictured,) = load("scienceqa", folder)
    assert pictured.id == "test-0" and len(pictured.images) == 1
    assert pictured.prompt.startswith("It is orange.\nWhich cake is this?\nA. sponge\nB. carrot\n")
    assert pictured.references == ("B", "carrot")
    assert [len(e.images) for e in load_suite("scienceqa-full", path=folder)] == [1, 0]


def test_mm_vet_answers_have_parts_and_alternatives(folder):
    parts, alternatives = load("mm-vet", folder)
    assert (parts.id, parts.category) == ("v1_0", "ocr+rec")
    assert correct(parts.references, "A sponge and a carrot cake.")
    assert not correct(parts.references, "A sponge.")
    assert correct(alternatives.references, "A sponge.")


def test_mme_scores_questions_and_pictures(folder):
    suite = load("mme", folder)
    assert suite.examples[0].id == "existence/cakes/0.png-1"
    assert [e.references for e in suite][:2] == [("yes",), ("no",)]
    categories = {e.id: e.category for e in suite}
    right = dict.fromkeys(categories, True)
    assert visual_questions.mme_score(right, categories) == {"existence": 200.0}
    right["existence/cakes/0.png-2"] = False
    assert visual_questions.mme_score(right, categories) == {"existence": 100 * (7 / 8 + 3 / 4)}


def test_pope_asks_briefly(folder):
    yes, no = load("pope-random", folder)
    assert yes.prompt.endswith("\nAnswer the question using a single word or phrase.")
    assert (yes.references, no.references) == (("yes",), ("no",))
