"""The vLLM plugin without vLLM: what it registers, what it is told, what it refuses."""

import json
import shlex
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from care._version import __version__
from care.defenses.artefact import save
from care.defenses.repair.channel import RepairData
from care.errors import ArtefactError, UsageError
from care.interfaces.cli import app as cli
from care.interfaces.vllm.command import serve_command, settings_for
from care.interfaces.vllm.limits import REQUESTS, check
from care.interfaces.vllm.plugin import MODULE, NATIVE, TRANSFORMERS, register_in
from care.interfaces.vllm.settings import (
    OFF,
    hashed,
    is_off,
    load_repair,
    read_settings,
)
from care.interfaces.vllm.state import with_masks
from care.interfaces.vllm.tokens import EditedTokens, StepMask
from care.models.sites import Site
from care.models.spec import ModelSpec
from care.typed import to_tree
from kit import tiny
from kit.artefacts import made as artefact_repair
from kit.repairs import made
from kit.watched import repaired as watched_repair

LLAVA = {"name": "llava-hf/some", "class": "LlavaForConditionalGeneration", "revision": "abc"}
MONITORED = "has monitors, and vLLM can only be given its edits"


@pytest.fixture
def folder(tmp_path):
    """A repair of edits alone, gated and at two kinds of sites."""
    return save(artefact_repair(manifest={"model": LLAVA}), tmp_path / "a repair")


def with_monitors(folder, monkeypatch):
    """As if the repair there had monitors."""
    from care.defenses import artefact

    load = artefact.load
    digest = artefact.digest(load(folder))
    monkeypatch.setattr(artefact, "digest", lambda repair: digest)
    told = SimpleNamespace(site=None, detector=None)
    monkeypatch.setattr(artefact, "load", lambda path: replace(load(path), monitors=(told,)))


# -- registering -----------------------------------------------------------------------------------


class Registry:
    def __init__(self, known):
        self.known, self.registered = list(known), {}

    def get_supported_archs(self):
        return self.known

    def register_model(self, name, where):
        self.registered[name] = where


def test_subclasses_are_registered_by_name_and_again_without_a_change():
    registry = Registry([*NATIVE, *TRANSFORMERS, "OtherForConditionalGeneration"])
    register_in(registry)
    first = dict(registry.registered)
    register_in(registry)
    assert registry.registered == first == {n: f"{MODULE}:{n}" for n in (*NATIVE, *TRANSFORMERS)}


def test_an_older_vllm_has_fewer_of_them():
    registry = Registry(["LlavaForConditionalGeneration"])
    register_in(registry)
    assert list(registry.registered) == ["LlavaForConditionalGeneration"]


# -- settings --------------------------------------------------------------------------------------


def test_without_a_repair_nothing_is_set():
    assert read_settings({}) is None and read_settings({"other": {"repair": 1}}) is None
    assert read_settings(SimpleNamespace()) is None


def test_settings_bring_the_repair_that_they_state(folder):
    settings = settings_for(folder)
    read = read_settings({"care": to_tree(settings, "x"), "other": 1})
    assert read == settings and settings.version == __version__
    assert load_repair(settings).digest() == settings.digest


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"version": "0.0.1"}, UsageError, r"was written by care 0\.0\.1, and care"),
        ({"digest": "f" * 64}, ArtefactError, "but --additional-config states 'ffffffffffff'"),
        ({"repair": "nowhere"}, ArtefactError, "There is no folder nowhere"),
    ],
)
def test_another_repair_than_is_stated_is_refused(folder, change, error, said):
    with pytest.raises(error, match=said):
        load_repair(replace(settings_for(folder), **change))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"repair": "x"}, "digest"),
        ({"repair": 1, "digest": "x", "version": "1"}, "repair"),
        ({"repair": "x", "digest": "x", "version": "1", "parts": "monitors"}, "parts"),
        ({"repair": "x", "digest": "x", "version": "1", "strength": 2}, "strength"),
        ("x", "care"),
    ],
)
def test_malformed_settings_are_named(told, said):
    with pytest.raises(UsageError, match=rf"(?s){said}.*copy what care export"):
        read_settings({"care": told})


def test_monitors_are_left_out_on_purpose_alone(folder, monkeypatch):
    with_monitors(folder, monkeypatch)
    with pytest.raises(UsageError, match=MONITORED):
        settings_for(folder)
    settings = settings_for(folder, edits_only=True)
    assert settings.parts == "edits" and load_repair(settings).monitors == ()
    with pytest.raises(UsageError, match='say so by "parts": "edits"'):
        load_repair(replace(settings, parts=None))


def test_a_request_is_off_by_the_right_word_alone(folder):
    settings = settings_for(folder, word="sesame")
    assert "sesame" not in json.dumps(to_tree(settings, "x"))
    assert is_off({OFF: "sesame"}, settings)
    for arguments in (None, {}, {OFF: "open"}, {OFF: hashed("sesame")}, {OFF: 1}):
        assert not is_off(arguments, settings)
    assert not is_off({OFF: "sesame"}, settings_for(folder))


# -- what can't be honoured ------------------------------------------------------------------------


def engine(**changes):
    """vLLM's configuration, as far as it is looked at; keys are `part.name`."""
    text = SimpleNamespace(num_hidden_layers=tiny.LAYERS, hidden_size=tiny.WIDTH)
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model="m",
            hf_config=SimpleNamespace(get_text_config=lambda: text),
            runner_type="generate",
            enable_prompt_embeds=False,
            logits_processors=[REQUESTS],
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            use_ubatching=False,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=False, kv_sharing_fast_prefill=False),
        device_config=SimpleNamespace(device_type="cpu"),
        compilation_config=SimpleNamespace(mode=3),
        speculative_config=None,
        kv_transfer_config=None,
        use_v2_model_runner=False,
    )
    for name, value in changes.items():
        *within, last = name.split(".")
        part = getattr(config, within[0]) if within else config
        assert hasattr(part, last)
        setattr(part, last, value)
    return config


def edits(*scopes, site="1.ffn_out", **options):
    return RepairData(tuple(made(site=Site.parse(site), scopes=each, **options) for each in scopes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_config.runner_type": "pooling"}, "of kind pooling"),
        ({"speculative_config": object()}, "leave out --speculative-config"),
        ({"parallel_config.pipeline_parallel_size": 2}, "leave out --pipeline-parallel-size"),
        ({"parallel_config.prefill_context_parallel_size": 2}, "leave out context parallelism"),
        ({"parallel_config.decode_context_parallel_size": 2}, "leave out context parallelism"),
        ({"parallel_config.use_ubatching": True}, "leave out --enable-dbo"),
        ({"model_config.enable_prompt_embeds": True}, "leave out --enable-prompt-embeds"),
        ({"kv_transfer_config": object()}, "leave out --kv-transfer-config"),
        ({"cache_config.kv_sharing_fast_prefill": True}, "leave out --kv-sharing-fast-prefill"),
        ({"device_config.device_type": "cuda"}, "set VLLM_USE_V2_MODEL_RUNNER=1"),
        ({"compilation_config.mode": 1}, "in compilation mode 1 nothing is eager"),
        ({"model_config.logits_processors": None}, f"add --logits-processors {REQUESTS}"),
        ({"cache_config.enable_prefix_caching": True}, "add --no-enable-prefix-caching"),
    ],
)
def test_an_engine_that_cannot_honour_it_is_refused(folder, change, said):
    settings, repair = settings_for(folder), edits(("decision", "response"))
    check(engine(), repair, settings, None)
    with pytest.raises(UsageError, match=f"^vLLM can't serve m with care: .*{said}") as caught:
        check(engine(**change), repair, settings, None)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("repair", "said"),
    [
        (edits(("all",), site="1.mhsa_out"), "only ffn_out and layer_out are edited there"),
        (edits(("all",), site="9.ffn_out"), "it edits 9.ffn_out, and the model has 4 layers"),
        (edits(("all",), width=8), "has width 8, and the model 32"),
        (edits(("all",), strength=0.0), "no channel that edits anything"),
        (edits(("image",)), "names no image token"),
        (edits(("text",)), "names no image token"),
    ],
)
def test_a_repair_that_cannot_be_honoured_is_refused(folder, repair, said):
    with pytest.raises(UsageError, match=said):
        check(engine(), repair, settings_for(folder), None)


def test_what_edits_every_token_needs_to_know_of_none(folder):
    plain = engine(
        **{
            "device_config.device_type": "cuda",
            "model_config.logits_processors": None,
            "cache_config.enable_prefix_caching": True,
        }
    )
    check(plain, edits(("all",)), settings_for(folder), None)
    with pytest.raises(UsageError, match="set VLLM_USE_V2_MODEL_RUNNER=1"):
        check(plain, edits(("all",)), settings_for(folder, word="w"), None)
    newer = engine(**{"device_config.device_type": "cuda", "use_v2_model_runner": True})
    check(newer, edits(("decision",)), settings_for(folder, word="w"), None)
    newer.cache_config.enable_prefix_caching = True
    with pytest.raises(UsageError, match="add --no-enable-prefix-caching"):
        check(newer, edits(("all",)), settings_for(folder, word="w"), None)


# -- Model Runner V2 -------------------------------------------------------------------------------


class State:
    """What vLLM keeps, as far as it is called."""

    def __init__(self, model):
        self.model, self.prepared = model, []

    def add_request(self, req_index, new_req_data):
        self.prepared.append(req_index)

    def prepare_inputs(self, input_batch, req_states):
        return {"positions": self.model.care.mask.buffer.clone()}


def test_the_newer_runner_writes_masks_before_each_step():
    scopes = (("decision",), ("response",))
    mask = StepMask(scopes, 16, torch.device("cpu"))

    def edited(prompt_ids, arguments):
        return EditedTokens.of(prompt_ids, scopes, None, off=bool(arguments))

    model = SimpleNamespace(care=SimpleNamespace(mask=mask, edited=edited))
    state = with_masks(State)(model)
    assert with_masks(State) is type(state)
    for slot, prompt, arguments in ((5, [1, 1, 1], None), (2, [1, 1], {"care_off": "x"})):
        params = SimpleNamespace(extra_args=arguments)
        state.add_request(slot, SimpleNamespace(prompt_token_ids=prompt, sampling_params=params))
    state.add_request(3, SimpleNamespace(prompt_token_ids=[1, 1, 1, 1], sampling_params=None))
    assert state.prepared == [5, 2, 3]

    def step(names, slots, first, counts, length):
        batch = SimpleNamespace(
            req_ids=names,
            idx_mapping_np=np.array(slots),
            num_computed_tokens_np=np.array(first),
            num_scheduled_tokens=np.array(counts),
            num_tokens_after_padding=length,
        )
        known = SimpleNamespace(req_id_to_index={"a": 5, "b": 2, "c": 3})
        found = state.prepare_inputs(batch, known)["positions"][:length]
        return ["".join("dr"[k] for k in range(2) if row[k]) or "-" for row in found.tolist()]

    assert step(["a", "b", "c"], [5, 2, 3], [0, 0, 0], [3, 2, 2], 8) == list("--d-----")
    assert step(["c", "a"], [3, 5], [2, 3], [2, 1], 4) == list("-dr-")
    # put aside and read again, answer included
    assert step(["b", "a"], [2, 5], [0, 0], [4, 5], 10) == list("------drr-")
    # nobody's: a warm-up
    assert step(["x"], [5], [0], [3], 4) == list("----")


# -- the command -----------------------------------------------------------------------------------


def test_the_command_is_one_line_that_says_everything(folder, capsys):
    assert cli.main(["export", str(folder), "--format", "vllm"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[:3] == ["vllm", "serve", "llava-hf/some"]
    said = json.loads(words[words.index("--additional-config") + 1])["care"]
    assert said["repair"] == str(folder) and said["version"] == __version__
    assert words[words.index("--logits-processors") + 1] == REQUESTS
    plain = json.loads(words[words.index("--override-generation-config") + 1])
    assert plain == {"repetition_penalty": 1, "top_p": 1, "top_k": 0, "min_p": 0}
    assert "--no-enable-prefix-caching" not in words and "--model-impl" not in words
    assert words[-2:] == ["--revision", "abc"]
    read = read_settings({"care": said})
    assert read is not None and load_repair(read).digest() == said["digest"]


def test_the_command_follows_model_word_and_repair(tmp_path, capsys):
    repair = replace(artefact_repair(), manifest={"model": {**LLAVA, "class": "OtherForX"}})
    folders = {}
    for scope in ("all", "decision"):
        channels = tuple(replace(c, scopes=(scope,)) for c in repair.channels)
        folders[scope] = save(replace(repair, channels=channels), tmp_path / scope)
    folder = folders["all"]
    asked = ["export", str(folder), "--format", "vllm", "--model", "mine", "--dtype", "float16"]
    assert cli.main(asked) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[2] == "mine" and words[-4:] == [
        "--model-impl",
        "transformers",
        "--dtype",
        "float16",
    ]
    assert "--no-enable-prefix-caching" not in words and "--revision" not in words
    assert cli.main(["export", str(folders["decision"]), "--format", "vllm"]) == 0
    assert "--no-enable-prefix-caching" in capsys.readouterr().out
    assert cli.main([*asked, "--off", "sesame"]) == 0
    out = capsys.readouterr().out
    assert "--no-enable-prefix-caching" in out and hashed("sesame") in out and "sesame " not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x"], "--format vllm takes no option of weights, but got out"),
        (["--push", "a/b"], "--format vllm takes no option of weights, but got push"),
        (["--images"], "--format vllm takes no option of a run, but got images"),
        (["--drop", "fusion"], "In vLLM a repair's fusion is honoured"),
        (["--model", "m", "--device-map", "auto"], "vLLM takes no device-map"),
    ],
)
def test_what_the_command_cannot_be_told(folder, capsys, arguments, said):
    assert cli.main(["export", str(folder), "--format", "vllm", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_weights_take_no_word(folder, capsys):
    assert cli.main(["export", str(folder), "--format", "lora", "--off", "x"]) == 2
    assert "--format lora takes no option of vllm, but got off" in capsys.readouterr().err


def test_the_embedded_model_has_to_be_a_folder(tmp_path):
    manifest = {"model": {**LLAVA, "name": "embedded"}}
    settings = settings_for(save(artefact_repair(manifest=manifest), tmp_path / "repair"))
    with pytest.raises(UsageError, match="and embedded is neither; name the folder"):
        serve_command(settings, ModelSpec())
    bad = replace(settings, repair=str(save(artefact_repair(), tmp_path / "other")))
    with pytest.raises(UsageError, match="and no model is neither"):
        serve_command(bad, ModelSpec())
    mhsa = replace(artefact_repair(), channels=(made(site=Site(1, "mhsa_out")),))
    with pytest.raises(UsageError, match=r"edits 1\.mhsa_out, and in vLLM only"):
        settings_for(save(mhsa, tmp_path / "mhsa"))


def test_gates_that_are_left_out_are_wide_open(folder, tmp_path):
    settings = settings_for(folder, opened=True)
    served, whole = load_repair(settings), load_repair(settings_for(folder))
    assert settings.parts == "opened" and served.channels
    assert any(channel.gate is not None for channel in whole.channels)
    assert all(channel.gate is None for channel in served.channels)
    monitors = watched_repair().monitors
    repair = replace(artefact_repair(manifest={"model": LLAVA}), monitors=monitors)
    watched = save(repair, tmp_path / "watched")
    with pytest.raises(UsageError, match="has monitors"):
        settings_for(watched, opened=True)
    both = load_repair(settings_for(watched, edits_only=True, opened=True))
    assert both.channels and not both.monitors
    assert all(channel.gate is None for channel in both.channels)
