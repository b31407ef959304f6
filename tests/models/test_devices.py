"""Models whose weights are put aside: inputs go where the modules run, weights are fetched."""

from types import SimpleNamespace

import pytest
import torch

from care.diagnosis.neurons.interpretation import written_tokens
from care.errors import ModelError
from care.judges.classifiers import TokenClassifier
from care.models.devices import device_of, weight_of
from care.models.vlm import VLM
from kit import tiny
from kit.judge_models import ANSWERS, GOALS, classifier

EXAMPLES = tiny.mixed_examples(4)


def put_aside(module, name="weight"):
    """Do by hand what accelerate does: a placeholder, and the weight only while it runs."""
    kept = getattr(module, name)
    placeholder = torch.nn.Parameter(torch.empty_like(kept, device="meta"), requires_grad=False)
    setattr(module, name, placeholder)
    module._hf_hook = SimpleNamespace(execution_device="cpu", weights_map={name: kept.data})
    forward = module.forward

    def fetched(*args, **kwargs):
        setattr(module, name, torch.nn.Parameter(kept.data, requires_grad=False))
        try:
            return forward(*args, **kwargs)
        finally:
            setattr(module, name, placeholder)

    module.forward = fetched


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_offloaded_embeddings_and_heads(family):
    model, processor = tiny.FAMILIES[family]()
    plain = VLM(model, processor, family)
    answers = plain.generate(EXAMPLES, max_new_tokens=6)
    odds = plain.refusal_log_odds(EXAMPLES)
    put_aside(model.get_input_embeddings())
    put_aside(model.get_output_embeddings())
    vlm = VLM(model, processor, family)
    assert (vlm.device.type, vlm.dtype) == ("cpu", torch.float32)
    assert vlm.generate(EXAMPLES, max_new_tokens=6) == answers
    assert vlm.refusal_log_odds(EXAMPLES) == pytest.approx(odds)


def test_neurons_of_offloaded_layers_are_read():
    vlm = tiny.tiny_vlm()
    wanted = written_tokens(vlm, [(1, 3), (3, 5)])
    for layer in vlm.anatomy.layers:
        put_aside(layer.mlp.down_proj)
    put_aside(vlm.model.get_output_embeddings())
    put_aside(vlm.model.get_decoder().norm)
    assert written_tokens(vlm, [(1, 3), (3, 5)]) == wanted


def test_judges_with_offloaded_embeddings():
    judge = classifier()
    wanted = judge(GOALS, ANSWERS)
    put_aside(judge.model.get_input_embeddings())
    assert isinstance(judge, TokenClassifier) and judge(GOALS, ANSWERS) == wanted


def test_where_a_module_runs():
    linear, off = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")
    assert device_of(linear) == torch.device("cpu")
    for hook in (
        SimpleNamespace(execution_device="cuda:0"),
        SimpleNamespace(hooks=[SimpleNamespace(), SimpleNamespace(execution_device="cuda:0")]),
    ):
        off._hf_hook = hook
        assert device_of(off).index == 0
        assert device_of(linear) == torch.device("cpu")  # its own weights tell
    del off._hf_hook
    model = SimpleNamespace(_hf_hook=SimpleNamespace(execution_device="cpu"))
    assert device_of(off, model) == torch.device("cpu")
    for placed, wanted in (
        ({"a": "cpu", "b": "disk"}, "cpu"),
        ({"a": "disk", "b": "cpu", "c": "cuda:1"}, "cuda:1"),
    ):
        assert device_of(off, SimpleNamespace(hf_device_map=placed)) == torch.device(wanted)
    for model in (None, SimpleNamespace(hf_device_map={"": "disk"}), SimpleNamespace()):
        with pytest.raises(ModelError, match=r"placeholders without data.*without offloading"):
            device_of(off, model)


def test_weights_that_cannot_be_fetched():
    off = torch.nn.Linear(2, 3, device="meta")
    for hook in (None, SimpleNamespace(execution_device="cpu", weights_map=None)):
        off._hf_hook = hook
        with pytest.raises(ModelError, match="can't be read; load the model without offloading"):
            weight_of(off)


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_what_accelerate_offloads(how, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, processor = tiny.tiny_llava()
    plain = VLM(model, processor, "plain")
    answers, meaning = plain.generate(EXAMPLES, max_new_tokens=6), written_tokens(plain, [(2, 1)])
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert model.get_input_embeddings().weight.device.type == "meta"
    vlm = VLM(model, processor, "offloaded")
    assert vlm.generate(EXAMPLES, max_new_tokens=6) == answers
    assert written_tokens(vlm, [(2, 1)]) == meaning
