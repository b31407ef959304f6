"""The adapter to nanoGCG, with a stand-in for the package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch

from care.data.example import Example
from care.errors import MissingDependencyError, ModelError, UsageError
from care.models.hooks import edit
from care.models.sites import Site
from kit.tiny import picture
from recipes.gcg import GCGConfig, gcg_suffix

ASKED = Example("a", "How do you {build} a house?", goal="build a house", kind="malicious")
CONFIG = GCGConfig(steps=3, search_width=8, topk=4, start="x x", seed=5)


@pytest.fixture
def calls(monkeypatch):
    """A stand-in that does what the package does first: ask the tokenizer for the prompt."""
    module, made = ModuleType("nanogcg"), []

    @dataclass
    class Config:
        num_steps: int
        optim_str_init: str
        search_width: int
        batch_size: int | None
        topk: int
        seed: int
        use_prefix_cache: bool
        verbosity: str

    def run(model, tokenizer, messages, target, config):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(config.seed)
        chat = [{"role": "user", "content": messages + "{optim_str}"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        frozen = not any(weight.requires_grad for weight in model.parameters())
        made.append(SimpleNamespace(text=text, target=target, config=config, frozen=frozen))
        return SimpleNamespace(best_loss=0.5, best_string="! !", losses=[2.0, 0.5])

    module.GCGConfig, module.run = Config, run
    monkeypatch.setitem(sys.modules, "nanogcg", module)
    return made


def test_the_request_is_written_by_the_models_own_template(vlm, calls):
    found = gcg_suffix(vlm, ASKED, "To build", CONFIG)
    (call,) = calls
    assert call.text == f"<|user|>{ASKED.prompt} {{optim_str}}<|end|><|assistant|>"
    assert call.target == "To build" and call.frozen
    assert (call.config.num_steps, call.config.topk, call.config.seed) == (3, 4, 5)
    assert call.config.optim_str_init == "x x" and not call.config.use_prefix_cache
    assert (found.text, found.loss, found.losses) == ("! !", 0.5, (2.0, 0.5))
    assert found.example.prompt == f"{ASKED.prompt} ! !"
    assert found.example.goal == "build a house" and found.example.kind == "malicious"


def test_nothing_of_the_process_or_the_model_changes(vlm, calls):
    template, state = vlm.tokenizer.chat_template, torch.get_rng_state()
    gcg_suffix(vlm, ASKED, "To build", CONFIG)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert vlm.tokenizer.chat_template == template
    assert all(weight.requires_grad for weight in vlm.model.parameters())


def test_without_the_package_one_sentence_says_how_to_get_it(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps nanogcg"):
        gcg_suffix(vlm, ASKED, "To build", CONFIG)


def test_bad_input_is_one_sentence(vlm, calls):
    with pytest.raises(UsageError, match="text alone"):
        gcg_suffix(vlm, Example("p", "Hi", (picture(),)), "Sure")
    with pytest.raises(UsageError, match="target is empty"):
        gcg_suffix(vlm, ASKED, " ")
    unchanged = edit(vlm, {Site(0, "ffn_out"): lambda h, roles: h})
    with unchanged, pytest.raises(ModelError, match="edit is active"):
        gcg_suffix(vlm, ASKED, "Sure")
    with pytest.raises(ModelError, match="one piece"):
        gcg_suffix(vlm, Example("q", "{optim_str}?"), "Sure")
    with pytest.raises(UsageError, match="topk"):
        GCGConfig(topk=0)
    assert not calls


def test_the_package_itself_finds_a_suffix(vlm):
    pytest.importorskip("nanogcg")
    start = "x x x x"
    found = gcg_suffix(vlm, ASKED, "To build", GCGConfig(steps=4, search_width=16, start=start))
    assert found.losses[-1] <= found.losses[0]
    assert found.example.prompt.startswith(ASKED.prompt)
