"""Recipes: the set-up of a main job by name, as a file of its options.

    about: what it reproduces                 in one line
    differs: how it differs from that         in words
    job:                                      options as on the command line, without dashes
      model: llava-hf/llava-1.5-7b-hf
      attacks: [jailbreakv-mini, figstep]
      max-new-tokens: 256

Those of the package are in `recipes`, a file each; a file of one's own is named by its path. What
an option means, and whether its value can be, is told by the job's configuration; options of the
command line win over those of a recipe (`care.interfaces.cli.recipes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from care.errors import DataError, UsageError
from care.runs.reading import read_text
from care.typed import from_tree

ENDINGS = (".yaml", ".yml")
"""Endings of a recipe's file."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe."""

    about: str
    """What it reproduces."""
    differs: str = ""
    """How it differs from that."""
    job: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the job by their names on the command line, without dashes."""


def recipe_names() -> list[str]:
    """Names of the package's recipes."""
    folder = resources.files("care.pipeline").joinpath("recipes")
    names = [file.name for file in folder.iterdir() if file.name.endswith(ENDINGS[0])]
    return sorted(name.removesuffix(ENDINGS[0]) for name in names)


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a file that ends in .yaml.

    Raises UsageError for a name that there isn't, DataError for a file that is none.
    """
    if name.endswith(ENDINGS) and (Path(name).exists() or "/" in name):
        return _recipe(read_text(Path(name), "recipe"), name)
    known, short = recipe_names(), name.removesuffix(ENDINGS[0])
    if short not in known:
        raise UsageError(
            f"There is no recipe {name!r}; there are {', '.join(known)}, and a file of your own "
            "ends in .yaml."
        )
    file = resources.files("care.pipeline").joinpath("recipes", f"{short}.yaml")
    return _recipe(file.read_text(encoding="utf-8"), short)


def _recipe(text: str, name: str) -> Recipe:
    try:
        found: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        first = str(error).replace("\n", " ")
        raise DataError(f"The recipe {name} is no YAML ({first:.120}); mend it.") from error
    tree = cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
    return from_tree(Recipe, tree, what=f"The recipe {name}")
