"""What docs/models.md says of each family is what a tiny model of it does."""

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from kit.architectures.checks import CHECKS
from kit.architectures.families import FAMILIES
from kit.architectures.matrix import (
    FAILED,
    PAGE,
    YES,
    Row,
    line,
    lines,
    rendered,
    tried,
    version_of,
)

TEXT = PAGE.read_text(encoding="utf-8")
TOLD = {row.split("|")[1].strip(" `"): row for row in lines(TEXT)}
SAME = version_of(TEXT) == transformers.__version__
MUST = """
llava llava_next llava_onevision qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe
internvl gemma3 gemma4 smolvlm idefics3 mistral3 paligemma glm4v deepseek_vl cohere2_vision
aya_vision ovis2 molmo2 llama4 mllama lfm2_vl minicpmv4_6
"""
MAY_LACK = {"neurons", "PGD", "mixed batch", "merge"}
"""Neurons of experts, processors that do more than resize once, cross-attention, and FFNs that end
in a norm or in experts."""
UPSTREAM = {("llama4", "beams")}
"""What transformers can't do itself."""


@pytest.mark.architectures
@pytest.mark.skipif(not SAME, reason="docs/models.md speaks of another release of transformers")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_what_the_page_says(name, tmp_path):
    assert line(tried(name, FAMILIES[name], tmp_path)) == TOLD[name], f"tools/models.py {name}"


@pytest.mark.skipif(not SAME, reason="docs/models.md speaks of another release of transformers")
def test_the_page_has_every_family_there_is():
    assert sorted(TOLD) == sorted(FAMILIES) == sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@pytest.mark.parametrize("name", MUST.split())
def test_what_people_run_can_be_used(name):
    marks = dict(zip(CHECKS, [cell.strip() for cell in TOLD[name].split("|")[2:]], strict=False))
    lacks = {head for head, mark in marks.items() if mark != YES and (name, head) not in UPSTREAM}
    assert lacks <= MAY_LACK
    assert FAILED not in marks.values()


def test_a_row_that_is_tried_anew_takes_the_place_of_the_old():
    page = "x\n<!-- models of transformers 1.0 -->\n| `a` | old |\n| `b` | old |\n<!-- end -->\ny"
    row = Row("a", "own", dict.fromkeys(CHECKS, YES), {"no | that": ("fit",)})
    made = rendered(page, [row])
    assert made.startswith("x\n") and made.endswith("<!-- end -->\ny")
    assert version_of(made) == transformers.__version__
    assert lines(made) == [line(row), "| `b` | old |"]
    assert r"fit: no \| that" in lines(made)[0]
