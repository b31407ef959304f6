"""The options of a command from a recipe, where they weren't given on the command line.

A recipe (`care.pipeline.recipe`) names options as they are said, without dashes. Their values are
held to the types of the configuration's fields; which of them can't be together is for the
configuration to say.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import difflib
from collections.abc import Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from care.errors import UsageError
from care.typed import from_tree

if TYPE_CHECKING:
    from care.interfaces.cli.options import Option

_RECIPE = typer.Option(
    "--recipe",
    help="Set-up by name (see `care list recipes`) or a .yaml file; options given here win.",
)

PARAMETERS = (
    Parameter(
        "recipe", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, _RECIPE]
    ),
    Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context),
)
"""What a command takes besides its configuration's options, where recipes are."""


def filled(
    options: "Sequence[Option]",
    whole: "Sequence[Option]",
    given: Mapping[str, Any],
    ctx: typer.Context,
    recipe: str | None,
) -> dict[str, Any]:
    """What was given for each option, and what the recipe says of those that weren't.

    A recipe is of the `whole` job; what a command that does a part of it has no option for is
    passed over.
    Raises UsageError for an option that the command doesn't have, DataError for a wrong value.
    """
    found = dict(given)
    if recipe is None:
        return found
    from care.pipeline.recipe import read_recipe

    known = {option.said.lstrip("-"): option for option in options}
    elsewhere = {option.said.lstrip("-") for option in whole} - known.keys()
    for name, value in read_recipe(recipe).job.items():
        if name in elsewhere:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise UsageError(f"The recipe {recipe} has {name!r}, which is no option here; {hint}")
        option = known[name]
        source = ctx.get_parameter_source(option.parameter)
        if source is None or source.name == "DEFAULT":
            found[option.parameter] = _value(option, value, recipe)
    return found


def _value(option: "Option", value: Any, recipe: str) -> Any:
    """A value as typer would give it."""
    what, name = f"The recipe {recipe}", option.said.lstrip("-")
    if option.repeated:
        listed = cast("list[object]", value if isinstance(value, list) else [value])
        texts = [str(each) if isinstance(each, int) else each for each in listed]
        return list(from_tree(tuple[str, ...], texts, name, what=what))
    if Path in (option.kind, *get_args(option.kind)):
        return Path(from_tree(str, value, name, what=what))
    return from_tree(option.kind, value, name, what=what)
