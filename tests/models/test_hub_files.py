"""Which files of a repository would be loaded, and what of them lies in the cache."""

from __future__ import annotations

import json

import pytest

from care.models.hub_files import cached, loaded_files, weights_of
from kit.hub import FakeHub, hub  # noqa: F401

PARTS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
INDEX = "model.safetensors.index.json"
OLD_PARTS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
OLD_INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["model.safetensors", INDEX, *PARTS], ["model.safetensors"]),
        ([INDEX, *PARTS, OLD_INDEX, *OLD_PARTS], [INDEX, *PARTS]),
        (
            [
                INDEX,
                *PARTS,
                "consolidated.safetensors",
                "original/model-00001-of-00002.safetensors",
            ],
            [INDEX, *PARTS],
        ),
        ([INDEX, *PARTS, "model.fp16-00001-of-00001.safetensors"], [INDEX, *PARTS]),
        (
            [INDEX, "model.safetensors-00001-of-00001.safetensors"],
            [INDEX, "model.safetensors-00001-of-00001.safetensors"],
        ),
        (
            [INDEX, "first.safetensors", "consolidated.safetensors", "onnx/x.safetensors"],
            [INDEX, "first.safetensors"],
        ),
        ([OLD_INDEX, *OLD_PARTS, "training_args.bin"], [OLD_INDEX, *OLD_PARTS]),
        (["pytorch_model.bin", "model.gguf"], ["pytorch_model.bin"]),
        (["adapter_model.safetensors", "adapter_config.json", "model.gguf"], []),
        ([INDEX], []),
    ],
)
def test_one_copy_of_the_weights_is_loaded(names: list[str], weights: list[str]) -> None:
    assert weights_of(names) == weights


def test_what_stands_beside_the_weights_is_loaded_from_the_root_alone() -> None:
    beside = ["chat_template.jinja", "config.json", "preprocessor_config.json", "tokenizer.json"]
    left = [
        "README.md", "original/tokenizer.model", "onnx/model.onnx", OLD_INDEX, "figure.png",
        "trainer_state.json", "adapter_config.json",
    ]  # fmt: skip
    assert loaded_files([INDEX, *PARTS, *left, *beside]) == [INDEX, *PARTS, *beside]
    assert loaded_files(beside) == []


def test_how_much_of_a_model_is_cached(hub: FakeHub) -> None:
    assert cached("some/model", None) == "no"
    commit = hub.keep("some/model", "config.json")
    assert cached("some/model", None) == "in part"
    hub.keep("no/index", "config.json", *PARTS)
    assert cached("no/index", None) == "in part"
    (commit / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(PARTS))}))
    assert cached("some/model", None) == "in part"
    hub.keep("some/model", PARTS[0])
    assert cached("some/model", None) == "in part"
    hub.keep("some/model", PARTS[1])
    assert cached("some/model", None) == "whole"
    assert cached("some/model", "another") == "no"
    (commit / INDEX).write_text("[")
    assert cached("some/model", None) == "in part"
    hub.keep("one/file", "config.json", "model.safetensors")
    assert cached("one/file", None) == "whole"
    hub.keep("own/name", "config.json", "weights.safetensors")
    assert cached("own/name", None) == "whole"
    with pytest.raises(ValueError, match="/models/none"):
        cached("/models/none", None)
