"""The options of a command, made from the fields of its configuration.

A field becomes an option of its name, with its docstring as the help, its bounds and choices, and
its default; so every option is written once. A configuration within it (`ModelSpec`, `RunSpec`)
gives its own fields in its place. What a field says besides (another name, a file that must be
there) are marks of `care.runs.settings`.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, get_args, get_origin

import typer

from care.errors import UsageError
from care.interfaces.cli.recipes import PARAMETERS, filled
from care.report.described import docstrings
from care.runs.settings import MANY, MAX_BATCH, Between, ExistingFile, Said, Unsaid, mark_of, marks

_TOLD = {"exists": True, "dir_okay": False}


@dataclass(frozen=True)
class Option:
    """A field of a configuration, as an option or argument of a command."""

    place: tuple[str, ...]
    """Names of the fields that lead to it: ("run", "out")."""
    kind: Any
    """Type of the field."""
    marks: tuple[Any, ...]
    """What it says besides."""
    default: Any
    """Default value."""
    help: str
    """Its docstring, in one line."""

    @property
    def said(self) -> str:
        """Its name on the command line."""
        mark = mark_of(Said, self.marks)
        return mark.name if mark else "--" + self.place[-1].replace("_", "-")

    @property
    def parameter(self) -> str:
        """Its name as a parameter of the command's function."""
        return self.place[-1] if self.said.startswith("-") else self.said

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) is tuple

    def signature(self) -> inspect.Parameter:
        """The parameter as typer reads it."""
        more: dict[str, Any] = {"help": self.help}
        if bounds := mark_of(Between, self.marks):
            more["min"] = bounds.low
            # Bounds that only keep nonsense out are held by the configuration and not shown.
            more["max"] = None if bounds.high in (MANY, MAX_BATCH) else bounds.high
        if mark_of(ExistingFile, self.marks):
            more |= _TOLD
        kind, default = self.kind, self.default
        if self.repeated:
            kind, default = list[get_args(kind)[0]] | None, list(default) or None
        if self.said.startswith("-"):
            told = Annotated[kind, typer.Option(self.said, **more)]
        else:
            told = Annotated[kind, typer.Argument(**more)]
        default = inspect.Parameter.empty if default is MISSING else default
        kept = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.parameter, kept, default=default, annotation=told)

    def read(self, given: Any) -> Any:
        """The field's value from what typer gives."""
        if not self.repeated:
            return given
        mark = mark_of(Said, self.marks)
        return by_commas(given, self.said) if mark and mark.by_commas else tuple(given or ())


def options_of(
    config: type,
    without: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    said: Mapping[str, str] | None = None,
) -> list[Option]:
    """The options of a configuration: arguments first, then by the order of its fields.

    `without` names fields that the command doesn't have; `defaults` and how fields are `said` are
    its own.
    """
    found = [
        option
        for option in _below(config, ())
        if option.place[-1] not in without and not mark_of(Unsaid, option.marks)
    ]
    own, names = defaults or {}, said or {}
    found = [
        replace(
            o,
            default=own.get(o.place[-1], o.default),
            marks=(*(Said(names[n]) for n in o.place[-1:] if n in names), *o.marks),
        )
        for o in found
    ]
    return sorted(found, key=lambda option: option.said.startswith("-"))


def made(config: type, options: Sequence[Option], given: Mapping[str, Any]) -> Any:
    """The configuration from what was given for each option, by its parameter."""
    own: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for option in options:
        value = option.read(given[option.parameter])
        *within, name = option.place
        (parts.setdefault(within[0], {}) if within else own)[name] = value
    kinds = {name: kind for name, kind, _ in marks(config)}
    return config(**own, **{name: kinds[name](**values) for name, values in parts.items()})


def takes(
    config: type,
    without: Sequence[str] = (),
    recipes: bool = False,
    said: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a configuration before its own; it gets that first.

    With `recipes`, what isn't said on the command line may come from `--recipe`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        options, whole = options_of(config, without, defaults, said), options_of(config)
        own = list(inspect.signature(function).parameters.values())[1:]

        def run(**given: Any) -> None:
            rest = {parameter.name: given.pop(parameter.name) for parameter in own}
            if recipes:
                given = filled(options, whole, given, given.pop("ctx"), given.pop("recipe"))
            function(made(config, options, given), **rest)

        more = PARAMETERS if recipes else ()
        parameters = [*(option.signature() for option in options), *more, *own]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def by_commas(given: Sequence[str] | None, option: str) -> tuple[str, ...]:
    """Names of suites that were given several times or by commas; UsageError for one of nothing
    and for one that stands twice."""
    names: list[str] = []
    for one in given or ():
        found = [name.strip() for name in one.split(",") if name.strip()]
        if not found:
            raise UsageError(f"{option} {one!r} names no suite; see `care list suites`.")
        names += found
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{option} names {twice} twice; name it once.")
    return tuple(names)


def _below(config: type, place: tuple[str, ...], within: Any = None) -> Iterator[Option]:
    told, known = docstrings(config), {field.name: field for field in fields(config)}
    for name, kind, found in marks(config):
        default = _default(known[name]) if within is None else getattr(within, name)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _below(kind, (*place, name), default)
        else:
            yield Option((*place, name), kind, found, default, told[name])


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
