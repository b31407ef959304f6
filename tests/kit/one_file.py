"""The examples that show a method in one file, and what they are compared with the package on."""

import importlib.util
from pathlib import Path

import pytest

from care.models.vlm import VLM
from kit import tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name):
    """The module of an example, which isn't installed."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair():
    """A tiny model and its processor."""
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def vlm(pair):
    """The same as the package has it."""
    return VLM(*pair, name="tiny")
