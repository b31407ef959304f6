"""Judges by name, as `--judge` takes them: `harmbench`, `api,model=gpt-4o,url=https://…/v1`.

A judge is asked for as NAME[,option=value]…; the options are the fields of its configuration
(`config`). Weights are loaded when the judge is made, from the Hub or from the folder given as
model=FOLDER. `as=OTHER` gives it another name in tables, so that two of a kind can stand side by
side. Another judge is added by registering its configuration (docs/evaluation.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from care.errors import UsageError
from care.judges.api import ApiConfig
from care.judges.base import Judge
from care.judges.config import (
    ClassifierConfig,
    DetoxifyConfig,
    GuardConfig,
    JudgeConfig,
    PictureConfig,
    RulesConfig,
    WordListConfig,
)
from care.judges.rules import RulesJudge
from care.runs.settings import check_file_name, named_options

Config = TypeVar("Config", bound=type[JudgeConfig])


@dataclass(frozen=True)
class KnownJudge:
    """One registered judge."""

    about: str
    """What it decides, and what it needs."""
    config: type[JudgeConfig]
    """What it is made from."""
    given: Mapping[str, Any]
    """Fields of the configuration that are this judge's own; other values may be asked for."""
    example: str
    """How it is asked for, where an option is needed."""

    @property
    def options(self) -> tuple[str, ...]:
        """Options it takes besides `as`; NAME stands for any name."""
        nested = _nested(self.config)
        return tuple(f"{f.name}.NAME" if f.name in nested else f.name for f in self.fields())

    def fields(self) -> list[Field]:
        """The fields of the configuration that are options."""
        return [f for f in fields(self.config) if not f.metadata.get("fixed")]


JUDGES: dict[str, KnownJudge] = {}
"""Every judge, by name."""


def register(name: str, about: str, example: str = "", **given: Any) -> Callable[[Config], Config]:
    """Put a judge under a name: `@register("mine", "what it decides")` above its configuration.

    `given` are fields that this judge has otherwise than by default. Raises UsageError for a name
    that is taken or can't be that of a file.
    """

    if check_file_name(name, "a judge") in JUDGES:
        raise UsageError(f"There is a judge {name!r} already; register it by another name.")

    def put(config: Config) -> Config:
        JUDGES[name] = KnownJudge(about, config, given, example or name)
        return config

    return put


def load_judge(wanted: str, rules: RulesJudge | None = None) -> Judge:
    """The judge that `wanted` describes; `rules` tell refusals and broken text.

    Raises UsageError for an unknown name or option, and what the judge raises that can't be had.
    """
    return judge_config(wanted).judge(rules or RulesJudge())


def check_judge(wanted: str) -> None:
    """Raise what `load_judge` would for a name, option or file, without loading a model."""
    judge_config(wanted).check()


def shown_name(wanted: str) -> str:
    """The name in tables of the judge that `wanted` describes, without loading it."""
    return judge_config(wanted).name


def needs_images(wanted: str) -> bool:
    """Whether the judge that `wanted` describes must see the pictures of a request."""
    return judge_config(wanted).reads_images


def judge_config(wanted: str) -> JudgeConfig:
    """The configuration that `wanted` describes, checked: nothing is written or asked before a
    wrong one is refused."""
    name, given = named_options(wanted, "a judge")
    if name not in JUDGES:
        raise UsageError(f"There is no judge {name!r}; there are {', '.join(JUDGES)}.")
    entry = JUDGES[name]
    shown = check_file_name(given.pop("as", name), "a judge")
    nested = {field: _nest(given, field) for field in _nested(entry.config)}
    options = {key: value for key, value in given.items() if key.partition(".")[0] not in nested}
    known = (*entry.options, "as")
    if unknown := sorted(set(options) - {field.name for field in entry.fields()}):
        raise UsageError(
            f"The judge {name} has no option {unknown[0]!r}; it takes {', '.join(known)}."
        )
    for field in entry.fields():
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in {*options, *entry.given}:
            raise UsageError(f"The judge {name} needs a {field.name}, as in {entry.example}.")
    typed = {key: _typed(entry.config, key, value) for key, value in options.items()}
    return entry.config(**{"name": shown, **entry.given, **nested, **typed})


def _nested(config: type[JudgeConfig]) -> list[str]:
    """Fields that hold fields of their own, given as FIELD.NAME."""
    return [name for name, hint in get_type_hints(config).items() if get_origin(hint) is Mapping]


def _nest(given: Mapping[str, str], field: str) -> dict[str, Any]:
    """The options FIELD.NAME[.NAME]… as fields within one another, their values read as JSON where
    they are."""
    found: dict[str, Any] = {}
    for key in given:
        first, *rest = key.split(".")
        if first != field:
            continue
        *parents, last = rest or [""]
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"The option {key} contradicts another option {field}.{parent}.")
        if not last or "" in parents or last in place:
            raise UsageError(f"The option {key} names no field of a request, or names one twice.")
        place[last] = _json_or_text(given[key])
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(config: type[JudgeConfig], key: str, value: str) -> Any:
    """An option's text as its field has it."""
    hint = get_type_hints(config)[key]
    kinds = get_args(hint) or (hint,)
    if NoneType in kinds and str not in kinds and value.lower() == "none":
        return None
    if bool in kinds:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"The option {key} is true or false, got {value!r:.40}.")
        return value.lower() == "true"
    number = int if int in kinds else float if float in kinds else None
    if number is None:
        return value
    try:
        return number(value)
    except ValueError as error:
        raise UsageError(f"The option {key} is a number, got {value!r:.40}.") from error


register("rules", "refusal, coherence and keywords of the goal; offline")(RulesConfig)
register(
    "harmbench",
    "HarmBench's classifier, Llama-2 13B (hub)",
    model="cais/HarmBench-Llama-2-13b-cls",
)(ClassifierConfig)
register(
    "harmbench-7b",
    "HarmBench's validation classifier, Mistral 7B (hub)",
    model="cais/HarmBench-Mistral-7b-val-cls",
)(ClassifierConfig)
register(
    "strongreject",
    "StrongREJECT's fine-tuned Gemma 2B (hub, gated; extra peft)",
    model="qylu4156/strongreject-15k-v1",
    scale="grade",
)(ClassifierConfig)
register(
    "llama-guard-3",
    "Llama Guard 3 8B on request and answer (hub, gated)",
    model="meta-llama/Llama-Guard-3-8B",
)(GuardConfig)
register(
    "llama-guard-3-vision",
    "Llama Guard 3 11B with the pictures (hub, gated)",
    model="meta-llama/Llama-Guard-3-11B-Vision",
    vision=True,
)(GuardConfig)
register(
    "llama-guard-4",
    "Llama Guard 4 12B with the pictures (hub, gated)",
    model="meta-llama/Llama-Guard-4-12B",
    vision=True,
)(GuardConfig)
register(
    "shieldgemma",
    "ShieldGemma 2 4B on the request's pictures alone (hub, gated)",
    model="google/shieldgemma-2-4b-it",
)(PictureConfig)
register(
    "detoxify", "toxicity, any attribute above 0.5 (extra detoxify; its weights are downloaded)"
)(DetoxifyConfig)
register(
    "toxic-words-standin",
    "a word list that stands in for Detoxify offline; not comparable with it",
)(WordListConfig)
register(
    "api",
    "a chat model behind any OpenAI-compatible API",
    example="api,model=NAME,url=http://…/v1",
)(ApiConfig)
