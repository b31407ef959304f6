"""Shared prefill: the answers of the whole path, from prompts that were read once."""

from dataclasses import replace

import pytest
import torch

from care.data.example import Suite
from care.errors import UsageError
from care.evaluation.runner import evaluate
from care.judges.rules import RulesJudge
from care.models import decoding
from care.models.hooks import read
from care.models.prompt_cache import PLAIN_POSITIONS, Start, read_prompts
from care.models.sites import Role, Site, scope_mask
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import SITES, repair

PLAIN = sorted(PLAIN_POSITIONS)
EXAMPLES = tiny.mixed_examples(8)


def tensors(prefill):
    """Every tensor of the shared caches."""
    return [
        tensor
        for _, start in prefill.parts
        for layer in start.cache.layers
        for tensor in (layer.keys, layer.values)
    ]


@pytest.fixture(scope="module", params=PLAIN)
def vlm(request):
    return VLM(*tiny.FAMILIES[request.param](), request.param)


@pytest.fixture(scope="module")
def llava():
    return tiny.tiny_vlm()


# -- the same answers ------------------------------------------------------------------------------


def test_answers_are_those_of_the_whole_path_bare_and_defended(vlm):
    """Defenses one after the other, and bare again: nothing of one is left for the next."""
    options = {"max_new_tokens": 8}
    bare = vlm.generate(EXAMPLES, **options)
    prefill = vlm.prefill(EXAMPLES)
    assert {len(chunk) for chunk, _ in prefill.parts} == {4}  # with and without an image
    before = [(tensor, tensor.clone()) for tensor in tensors(prefill)]
    assert vlm.generate(prefill, **options) == bare
    for defense in (repair(0), repair(1, ("decision", "response"))):
        with defense.applied(vlm) as whole:
            expected = vlm.generate(EXAMPLES, **options)
        with defense.applied(vlm) as shared:
            assert vlm.generate(prefill, **options) == expected
        assert expected != bare
        assert [shared[site].tokens for site in SITES] == [whole[site].tokens for site in SITES]
        assert shared.tokens >= len(SITES) * len(EXAMPLES)
    assert vlm.generate(prefill, **options) == bare
    for (tensor, copy), now in zip(before, tensors(prefill), strict=True):
        assert tensor is now and torch.equal(tensor, copy)


def test_a_decision_is_one_position_in_each_row(llava):
    site = Site(1, "ffn_out")
    seen = []
    prefill = llava.prefill(EXAMPLES)
    with read(llava, [site], sink=lambda site, h, roles: seen.append(roles)):
        llava.generate(prefill, max_new_tokens=2)
    prompts = [roles for roles in seen if (roles != Role.RESPONSE).any()]
    assert [roles.tolist() for roles in prompts] == [[[Role.TEXT]] * 4] * 2
    assert all(scope_mask(roles, ["decision"]).all() for roles in prompts)
    assert len(seen) == 4


def test_an_answer_s_tokens_are_response_even_where_they_are_padding_elsewhere():
    llava = tiny.tiny_vlm()
    batch = llava.batch(EXAMPLES[0])
    rows = decoding.AnswerRows(frozenset(), str, None, 0.0, [torch.Generator()])
    tiny.decode(llava, batch, rows, 4)
    llava.tokenizer.pad_token_id = rows.tokens[0][1]
    seen = []
    with read(llava, [Site(0, "ffn_out")], sink=lambda site, h, roles: seen.append(roles)):
        tiny.decode(llava, batch, rows, 4)
    assert [roles.tolist() for roles in seen[1:]] == [[[Role.RESPONSE]]] * 3


def test_sampling_and_stopping_work_alike(llava):
    hot = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    prefill = llava.prefill(EXAMPLES, batch_size=3)
    expected = llava.generate(EXAMPLES, **hot)
    assert llava.generate(prefill, **hot) == expected
    assert llava.generate(prefill, **{**hot, "seed": 4}) != expected
    done = []
    cut = {"max_new_tokens": 16, "stop": lambda text: len(text) > 9}
    assert llava.generate(prefill, progress=done.append, **cut) == llava.generate(EXAMPLES, **cut)
    assert sum(done) == len(EXAMPLES)


def test_rows_that_finish_leave_the_shared_tensors_alone(llava):
    """End tokens at different steps, so that rows are dropped on the way."""
    first = llava.generate(llava.prefill(EXAMPLES), max_new_tokens=decoding.STOP_EVERY)
    prefill = llava.prefill(EXAMPLES)
    before = [tensor.clone() for tensor in tensors(prefill)]
    options = {"max_new_tokens": 12, "stop": lambda text: text in first[:5]}
    answers = llava.generate(prefill, **options)
    assert answers[:5] == first[:5] and answers[5:] != first[5:]
    assert answers == llava.generate(EXAMPLES, **options)
    assert all(map(torch.equal, before, tensors(prefill)))


def test_sliding_windows_are_shared_too():
    """Prompts longer than the window, whose cache layers count what they have dropped."""
    model, processor = tiny.tiny_internvl()
    text = model.config.text_config
    text.sliding_window, text.layer_types = 6, ["sliding_attention", "full_attention"] * 2
    text.use_sliding_window = True
    model = tiny.build(type(model), model.config, 0)
    vlm = VLM(model, processor, "sliding")
    prefill = vlm.prefill(EXAMPLES)
    assert prefill.parts[0][1].cache.layers[0].keys.shape[2] == 5
    for _ in range(2):
        assert vlm.generate(prefill, max_new_tokens=8) == vlm.generate(EXAMPLES, max_new_tokens=8)


# -- reading ahead ---------------------------------------------------------------------------------


def test_the_vision_tower_runs_once_however_many_answers(llava):
    sizes = []
    tower = llava.model.model.vision_tower
    handles = [
        tower.register_forward_hook(lambda *_: sizes.append("tower")),
        llava.model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        ),
    ]
    prefill = llava.prefill(EXAMPLES[1::2])
    length = llava.batch(EXAMPLES[1::2]).roles.shape[1]
    assert sizes == [length - 1, "tower"]
    sizes.clear()
    for _ in range(3):
        llava.generate(prefill, max_new_tokens=1)
    for handle in handles:
        handle.remove()
    assert sizes == [1] * 3


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - set(PLAIN)))
def test_other_models_read_for_themselves(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    prefill = vlm.prefill(EXAMPLES)
    assert all(start.cache is None for _, start in prefill.parts)
    with repair().applied(vlm) as whole:
        expected = vlm.generate(EXAMPLES, max_new_tokens=4)
    with repair().applied(vlm) as shared:
        assert vlm.generate(prefill, max_new_tokens=4) == expected
    assert shared.tokens == whole.tokens > 0


def test_prompts_that_end_in_an_image_are_not_cut(llava):
    batch = llava.batch(EXAMPLES[1])
    keep = int((batch.roles[0] == Role.IMAGE).nonzero().max()) + 1
    inputs = {k: v[:, :keep] if k != "pixel_values" else v for k, v in batch.inputs.items()}
    start = Start(inputs, batch.roles[:, :keep])
    assert read_prompts(llava.model, llava.roles, start) is start
    with pytest.raises(UsageError, match="can't be split"):
        start.part([0])
    whole = Start(batch.inputs, batch.roles)
    assert read_prompts(llava.model, llava.roles, whole).inputs["input_ids"].shape == (1, 1)


def test_prompts_that_do_not_fit_are_read_while_answering(llava, monkeypatch):
    expected = llava.generate(EXAMPLES, max_new_tokens=4)
    whole = llava.model.forward

    def small_only(*args, **kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args, **kwargs)

    full = llava.prefill(EXAMPLES)
    monkeypatch.setattr(llava.model, "forward", small_only)
    # Read ahead while there was memory, decoded with less of it.
    before = [tensor.clone() for tensor in tensors(full)]
    assert llava.generate(full, max_new_tokens=4) == expected
    assert all(map(torch.equal, before, tensors(full)))
    # Not read ahead at all.
    prefill = llava.prefill(EXAMPLES)
    assert all(start.cache is None for _, start in prefill.parts)
    assert llava.generate(prefill, max_new_tokens=4) == expected


def test_other_errors_of_reading_are_raised(llava, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("index out of range")

    monkeypatch.setattr(llava.model, "forward", broken)
    with pytest.raises(RuntimeError, match="index out of range"):
        llava.prefill(EXAMPLES)


def test_edges(llava):
    assert llava.generate(llava.prefill([]), max_new_tokens=2) == []
    one = llava.prefill(EXAMPLES[1])
    assert llava.generate(one, max_new_tokens=3) == llava.generate(EXAMPLES[1], max_new_tokens=3)
    for wrong in ({"max_new_tokens": 0}, {"temperature": float("nan")}):
        with pytest.raises(UsageError):
            llava.generate(one, **wrong)
    with pytest.raises(UsageError, match="batch_size"):
        llava.prefill(EXAMPLES, batch_size=0)


# -- evaluation ------------------------------------------------------------------------------------


def test_repairs_know_what_they_touch():
    assert repair(scopes=("decision",)).touches == "decision"
    assert repair(scopes=("decision", "response")).touches == "decision"
    for scopes in [("text",), ("image", "decision"), ("all",)]:
        assert repair(scopes=scopes).touches == "prompt"
    early = repair(scopes=("image",)).channels
    assert replace(repair(), channels=repair().channels + early).touches == "prompt"


def test_evaluation_answers_as_each_defense_alone_does(llava):
    suite = Suite("chat", "utility", tuple(EXAMPLES))
    late, other = repair(0), repair(1)
    early = replace(repair(2, ("text",)), name="early")
    table = evaluate(
        llava,
        [suite],
        [None, late, early, other],
        judge=RulesJudge(),
        max_new_tokens=6,
        batch_size=3,
    )
    for name, defense in [("none", None), (late.name, late), ("early", early), (other.name, other)]:
        rows = [row["response"] for row in table.rows if row["defense"] == name]
        if defense is None:
            assert rows == llava.generate(EXAMPLES, max_new_tokens=6)
        else:
            with defense.applied(llava):
                assert rows == llava.generate(EXAMPLES, max_new_tokens=6)
