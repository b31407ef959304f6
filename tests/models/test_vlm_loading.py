"""How a VLM is made: saved models load again, and what doesn't fit together is refused."""

import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from care.attacks.preprocessing import PixelPath
from care.data.conversation import Conversation
from care.data.example import Example
from care.defenses.folded_weights import unfoldable
from care.errors import DataError, MissingDependencyError, ModelError, UsageError
from care.models.devices import weight_of
from care.models.hooks import edit, read
from care.models.sites import Role, Site
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from kit import tiny
from kit.refusals import refusals, refused

EXAMPLES = tiny.mixed_examples(7)


def test_saved_models_load_again(tmp_path):
    vlm = tiny.tiny_vlm()
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    loaded = VLM.from_pretrained(str(tmp_path))
    assert loaded.name == str(tmp_path)
    assert loaded.generate(EXAMPLES, max_new_tokens=4) == vlm.generate(EXAMPLES, max_new_tokens=4)


def text_only(tmp_path):
    """A language model without eyes, loaded from a folder."""
    tiny.tiny_llama().save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    return VLM.from_pretrained(str(tmp_path))


def test_models_that_read_text_alone_are_loaded_with_their_tokenizers(tmp_path):
    vlm = text_only(tmp_path)
    assert not vlm.sees and tiny.tiny_vlm().sees
    direct = VLM(tiny.tiny_llama(), tiny.tiny_tokenizer())
    asked = [Example("a", "How do you build a house?", system="Be kind."), Example("b", "Hi")]
    assert vlm.generate(asked, max_new_tokens=4) == direct.generate(asked, max_new_tokens=4)
    roles = vlm.batch(asked).roles
    assert set(roles.flatten().tolist()) == {Role.PAD, Role.TEXT}
    talk = Conversation.of([{"role": "user", "content": "Hi"}])
    assert vlm.generate(talk, max_new_tokens=4) == vlm.generate(asked[1], max_new_tokens=4)


@pytest.mark.parametrize("bits", ["8-bit", "4-bit"])
def test_quantized_models_are_read_and_edited_and_their_weights_refused(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    wide = LlamaConfig(**tiny.text_config(hidden_size=64, intermediate_size=128, head_dim=16))
    tiny.build(LlamaForCausalLM, wide, 0).save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    folder = str(tmp_path)
    vlm = ModelSpec(folder, quantize=bits).load()
    assert not vlm.anatomy.layers[1].mlp.down_proj.weight.is_floating_point()
    sites, asked = [Site(1, "ffn_out")], [Example("a", "Hi"), Example("b", "How do you do?")]

    def activations(of):
        with read(of, sites) as recorder:
            of.forward(of.batch(asked))
        return recorder[sites[0]][0]

    whole, rounded = activations(VLM.from_pretrained(folder)), activations(vlm)
    assert 0 < (whole - rounded).norm() / whole.norm() < {"8-bit": 0.3, "4-bit": 0.8}[bits]
    answers = vlm.generate(asked, max_new_tokens=4)
    with edit(vlm, {sites[0]: lambda h, roles: h * 0}):
        assert vlm.generate(asked, max_new_tokens=4) != answers
    assert vlm.generate(asked, max_new_tokens=4) == answers
    with refused(ModelError, "quantized"):
        weight_of(vlm.anatomy.layers[1].mlp.down_proj)
    assert "quantised" in unfoldable(vlm, sites)[sites[0]].why


def test_quantization_that_is_not_possible(tmp_path, monkeypatch):
    monkeypatch.setattr("care.models.loading.find_spec", lambda name: None)
    with refused(MissingDependencyError, "need bitsandbytes"):
        VLM.from_pretrained(str(tmp_path), quantize="4-bit")
    with refused(UsageError, "8-bit or 4-bit"):
        VLM.from_pretrained(str(tmp_path), quantize="3-bit")
    with refused(UsageError, "embedded model takes no quantize"):
        ModelSpec(quantize="4-bit")


def test_pictures_are_refused_by_models_that_read_text_alone(tmp_path):
    vlm = text_only(tmp_path)
    with refused(DataError, "'e1' has an image, but the model reads text alone"):
        vlm.generate(tiny.mixed_examples(2))
    with refused(ModelError, "differentiated through"):
        PixelPath.of(vlm, tiny.picture())


def test_code_that_comes_with_weights_says_what_loads_it(tmp_path):
    """LLaVA-OneVision 1.5 can be had as a causal language model only, though it takes images."""
    vlm = tiny.tiny_vlm()
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    # Names as they are in memory: for a class of its own transformers translates none.
    save_file(vlm.model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        "class OwnConfig(LlavaConfig):\n    pass\n"
        "class Own(LlavaForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    path = tmp_path / "config.json"
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own}))
    loaded = VLM.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert type(loaded.model).__name__ == "Own" and loaded.sees
    assert loaded.generate(EXAMPLES, max_new_tokens=4) == vlm.generate(EXAMPLES, max_new_tokens=4)


def test_unknown_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no-such/model.*check the name"):
        VLM.from_pretrained("no-such/model")
    with pytest.raises(ModelError, match="could not be loaded"):
        VLM.from_pretrained(str(tmp_path))


def test_the_hub_is_given_up_after_one_file(monkeypatch):
    """Every request is tried for half a minute, so no loader may ask for more files."""
    asked = []

    def offline(name, file, **options):
        asked.append((name, file, options["revision"]))
        raise LocalEntryNotFoundError("the Hub can't be reached")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail())
    with pytest.raises(ModelError, match=r"no-such/model.*the network"):
        VLM.from_pretrained("no-such/model", revision="v1")
    assert asked == [("no-such/model", "config.json", "v1")]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    def needs(*args, **kwargs):
        raise ImportError("SomeProcessor requires\n the Torchvision library.")

    tiny.tiny_llava()[0].config.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", needs)
    with pytest.raises(MissingDependencyError, match="requires the Torchvision"):
        VLM.from_pretrained(str(tmp_path))


@pytest.fixture
def parts():
    return tiny.tiny_llava()


def with_image_token(parts, token):
    parts[0].config.image_token_index = parts[0].config.image_token_id = token
    return VLM(*parts)


def with_template(parts, template):
    for part in (parts[1], parts[1].tokenizer):
        part.chat_template = template
    return VLM(*parts)


TEXTS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

test_processors_must_fit_the_model = refusals(
    (ModelError, "processor", lambda parts: VLM(parts[0], parts[1].image_processor)),
    (ModelError, "processor", lambda parts: VLM(parts[0], parts[1].tokenizer)),
    (ModelError, "belong together", lambda parts: with_image_token(parts, 40)),
    (ModelError, "doesn't know", lambda parts: with_image_token(parts, 4000)),
    (ModelError, "content lists", lambda parts: with_template(parts, TEXTS)),
    (ModelError, "no chat template", lambda parts: with_template(parts, None)),
)


def test_a_missing_padding_token_is_replaced():
    model, processor = tiny.tiny_llava()
    processor.tokenizer.pad_token = None
    vlm = VLM(model, processor)
    assert vlm.tokenizer.pad_token == "<eos>"
    assert vlm.generate(EXAMPLES, max_new_tokens=3) == tiny.tiny_vlm().generate(
        EXAMPLES, max_new_tokens=3
    )


def test_a_begin_token_in_the_template_is_not_doubled():
    model, processor = tiny.tiny_llava()
    processor.tokenizer.bos_token = "<|user|>"
    vlm = VLM(model, processor)
    ids = vlm.batch(EXAMPLES[0]).inputs["input_ids"][0].tolist()
    assert ids.count(vlm.tokenizer.bos_token_id) == 1


def test_the_tiny_tokenizer_round_trips(tmp_path):
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    text = "Any text: ü 你好 I'm sorry!"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
