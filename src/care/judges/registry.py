"""Judges by name, as on the command line: `harmbench`, `api,model=gpt-4o,url=https://…/v1`.

A judge is asked for as NAME[,option=value]…; `JUDGES` says what each needs.
Weights are loaded when the judge is made, from the Hub or from the folder given as model=FOLDER.
`as=OTHER` gives it another name in tables, so that two of a kind can stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

from care.errors import UsageError
from care.judges.base import AnyJudge, Judge
from care.runs.options import check_file_name, named_options


@dataclass(frozen=True)
class Entry:
    """One kind of judge."""

    about: str
    """What it decides, and what it needs."""
    make: Callable[[str, dict[str, Any], Judge], AnyJudge]
    """From name, options and rules to the judge."""
    options: tuple[str, ...]
    """Options it takes besides `as`."""
    reads_images: bool = False
    """Whether it must see the pictures of a request."""


def make_judge(wanted: str, rules: Judge | None = None) -> AnyJudge:
    """The judge that `wanted` describes; `rules` tell refusals and broken text.

    Raises UsageError for an unknown name or option, and what the judge raises that can't be had.
    """
    name, options = _parsed(wanted)
    shown = check_file_name(str(options.pop("as", name)), "a judge")
    return JUDGES[name].make(shown, options, rules or Judge())


def check_judge(wanted: str) -> None:
    """Raise what `make_judge` would for a name, option or file, without loading a model."""
    name, options = _parsed(wanted)
    shown_name(wanted)
    if name in _LIGHT:
        make_judge(wanted)
    elif "template" in options:
        from care.judges.prompts import read_template

        read_template(options["template"])


def shown_name(wanted: str) -> str:
    """The name in tables of the judge that `wanted` describes, without loading it."""
    name, options = _parsed(wanted)
    return check_file_name(str(options.get("as", name)), "a judge")


def needs_images(wanted: str) -> bool:
    """Whether the judge that `wanted` describes must see the pictures of a request."""
    return JUDGES[_parsed(wanted)[0]].reads_images


def _parsed(wanted: str) -> tuple[str, dict[str, Any]]:
    """Name and options, checked: nothing is written or asked before a wrong one is refused."""
    name, given = named_options(wanted, "a judge")
    if name not in JUDGES:
        raise UsageError(f"There is no judge {name!r}; there are {', '.join(JUDGES)}.")
    known = (*JUDGES[name].options, "as")
    free = [key for key in given if not (name == "api" and key.startswith("body."))]
    if unknown := sorted(set(free) - set(known)):
        raise UsageError(
            f"The judge {name} has no option {unknown[0]!r}; it takes {', '.join(known)}."
        )
    options: dict[str, Any] = dict(given)
    if name == "api":
        _api_config(name, {key: value for key, value in options.items() if key != "as"})
    return name, options


def _rules(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
    if name == rules.name:
        return rules
    other = copy(rules)
    other.name = name
    return other


def _classifier(model: str, scale: str) -> Callable[[str, dict[str, Any], Judge], AnyJudge]:
    def make(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
        from care.judges.classifiers import ClassifierConfig, TokenClassifier

        given = {"name": name, "model": model, "scale": scale} | options
        return TokenClassifier.load(_config(ClassifierConfig, given), rules)

    return make


def _guard(model: str, vision: bool) -> Callable[[str, dict[str, Any], Judge], AnyJudge]:
    def make(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
        from care.judges.guards import GuardConfig, GuardJudge

        given = {"name": name, "model": model, "vision": vision} | options
        return GuardJudge.load(_config(GuardConfig, given), rules)

    return make


def _shieldgemma(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
    from care.judges.guards import GuardConfig
    from care.judges.shieldgemma import ShieldGemmaJudge

    given = {"name": name, "model": "google/shieldgemma-2-4b-it", "vision": True} | options
    return ShieldGemmaJudge.load(_config(GuardConfig, given), rules)


def _detoxify(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
    from care.judges.toxicity import DetoxifyJudge

    return DetoxifyJudge.load(**options, rules=rules, name=name)


def _words(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
    from care.judges.toxicity import WordListJudge

    return WordListJudge(rules, name)


def _api(name: str, options: dict[str, Any], rules: Judge) -> AnyJudge:
    from care.judges.api import ApiJudge

    return ApiJudge(_api_config(name, options), rules)


def _api_config(name: str, options: dict[str, Any]) -> Any:
    """The configuration of an API judge; `body.NAME` options become fields of its requests."""
    from care.judges.api import ApiConfig

    if "model" not in options:
        raise UsageError("The judge api needs a model, as in api,model=NAME,url=http://…/v1.")
    plain = {key: value for key, value in options.items() if not key.startswith("body.")}
    body: dict[str, Any] = {}
    for key in options.keys() - plain.keys():
        *parents, last = key.split(".")[1:]
        place = body
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"The option {key} contradicts another option body.{parent}.")
        if not last or "" in parents or last in place:
            raise UsageError(f"The option {key} names no field of a request, or names one twice.")
        place[last] = _json_or_text(options[key])
    return _config(ApiConfig, {"name": name, "body": body} | plain)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _config(kind: type, given: dict[str, Any]) -> Any:
    """A configuration whose numbers may be given as text."""
    kinds = {field.name: str(field.type) for field in fields(kind)}
    typed = dict(given)
    for key, value in given.items():
        number = {"int": int, "float": float}.get(kinds[key].removesuffix(" | None"))
        if number is None or not isinstance(value, str):
            continue
        if value.lower() == "none" and kinds[key].endswith("None"):
            typed[key] = None
            continue
        try:
            typed[key] = number(value)
        except ValueError as error:
            raise UsageError(f"The option {key} is a number, got {value!r:.40}.") from error
    return kind(**typed)


_LIGHT = ("rules", "toxic-words-standin", "api")
"""Judges that load nothing when they are made."""

_LOADING = ("model", "revision", "dtype", "device_map", "batch_size")
_PROMPTED = (*_LOADING, "template", "max_response_tokens")

JUDGES: dict[str, Entry] = {
    "rules": Entry("refusal, coherence and keywords of the goal; offline", _rules, ()),
    "harmbench": Entry(
        "HarmBench's classifier, Llama-2 13B (hub)",
        _classifier("cais/HarmBench-Llama-2-13b-cls", "yes_no"),
        _PROMPTED,
    ),
    "harmbench-7b": Entry(
        "HarmBench's validation classifier, Mistral 7B (hub)",
        _classifier("cais/HarmBench-Mistral-7b-val-cls", "yes_no"),
        _PROMPTED,
    ),
    "strongreject": Entry(
        "StrongREJECT's fine-tuned Gemma 2B (hub, gated; extra peft)",
        _classifier("qylu4156/strongreject-15k-v1", "grade"),
        _PROMPTED,
    ),
    "llama-guard-3": Entry(
        "Llama Guard 3 8B on request and answer (hub, gated)",
        _guard("meta-llama/Llama-Guard-3-8B", vision=False),
        _LOADING,
    ),
    "llama-guard-3-vision": Entry(
        "Llama Guard 3 11B with the pictures (hub, gated)",
        _guard("meta-llama/Llama-Guard-3-11B-Vision", vision=True),
        _LOADING,
        reads_images=True,
    ),
    "llama-guard-4": Entry(
        "Llama Guard 4 12B with the pictures (hub, gated)",
        _guard("meta-llama/Llama-Guard-4-12B", vision=True),
        _LOADING,
        reads_images=True,
    ),
    "shieldgemma": Entry(
        "ShieldGemma 2 4B on the request's pictures alone (hub, gated)",
        _shieldgemma,
        _LOADING,
        reads_images=True,
    ),
    "detoxify": Entry(
        "toxicity, any attribute above 0.5 (extra detoxify; its weights are downloaded)",
        _detoxify,
        ("variant", "checkpoint", "folder", "device"),
    ),
    "toxic-words-standin": Entry(
        "a word list that stands in for Detoxify offline; not comparable with it", _words, ()
    ),
    "api": Entry(
        "a chat model behind any OpenAI-compatible API",
        _api,
        (
            *("model", "url", "key_variable", "template", "timeout", "tries", "wait", "parallel"),
            *("temperature", "max_tokens", "max_completion_tokens", "body.NAME"),
        ),
    ),
}
"""Every judge, by name."""
