"""The command `care list recipes`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json

from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import AsJson
from care.interfaces.cli.tables import print_table


@command("list recipes")
def list_recipes(as_json: AsJson = False) -> None:
    """Every recipe for `--recipe`, its model, and how it differs from what it follows."""
    from care.pipeline.recipe import read_recipe, recipe_names

    found = {name: read_recipe(name) for name in recipe_names()}
    if as_json:
        print(json.dumps({name: vars(recipe) for name, recipe in found.items()}, indent=1))
        return
    cells = ([name, recipe.job["model"], recipe.about] for name, recipe in found.items())
    print_table(["recipe", "model", "what it is"], cells)
    for differs in dict.fromkeys(recipe.differs for recipe in found.values()):
        print(f"Differs: {differs}")
