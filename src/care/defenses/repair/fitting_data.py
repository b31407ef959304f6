"""What a repair is fitted on: the model's own answers, and the activations that go with them.

Requests are answered, and the answers sorted into three classes, the *material*:

    complied   attacks that worked
    refused    malicious requests that were refused
    answered   benign requests that were answered

A gated fit tells these apart at the decision position, the last of the prompt, whose activations
are taken from the same reading of the prompts. One without a gate names a *contrast*, two lists of
(example, answer) and the tokens that are compared:

| contrast | malicious | benign | tokens |
|---|---|---|---|
| `images` | pictures of attacks | pictures of benign inputs | image tokens |
| `comply-refuse` | malicious requests, complied with | the *same* requests, refused | answer |
| `comply-rest` | malicious requests, complied with | refusals, answers to benign ones | answer |

Of these tokens the mean is taken, of all of them or of those that are attributed (`attribution`).

`comply-refuse` is the text contrast of the official release: since answers to benign requests
never enter its benign class, it pays for safety with over-refusal. `comply-rest` is the corrected
one. In a LLaVA prompt the image comes first, so under causal attention its tokens depend on the
image alone, whatever is asked: hence `images`. Answers are the model's own, so activations are
those that occur (the release feeds canned ones). Material can be stored and read back; nothing here
fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from care.data.contamination import SCHEME, goal_digests
from care.data.digests import example_digest
from care.data.example import Example
from care.defenses.monitors.choosing import Said
from care.defenses.repair.attribution import AttributionConfig, attributed
from care.errors import DataError, FitError
from care.judges.refusal import certainly_refused
from care.judges.rules import RulesJudge
from care.models.hooks import read
from care.models.prompt_cache import PromptCache, first_logits
from care.models.sites import Scope, Site, scope_mask
from care.models.vlm import VLM
from care.runs.files import write_whole
from care.runs.kept_batches import KeptBatches, texts_from, texts_to

Answered = tuple[Example, str]

ContrastName = Literal["images", "comply-refuse", "comply-rest"]

CLASSES = ("complied", "refused", "answered")
"""The classes of a `Material`, in order."""

_CLASS_OF = {
    ("malicious", "harmful"): "complied",
    ("malicious", "refused"): "refused",
    ("benign", "safe"): "answered",
}
"""Class of an answer by the kind of its request and its outcome; others are left out."""


@dataclass(frozen=True)
class Material:
    """What a repair is fitted on: requests with the model's own answers, sorted by outcome."""

    complied: tuple[Answered, ...]
    """Attacks that worked, with the model's answers."""
    refused: tuple[Answered, ...]
    """Malicious requests that the model refused, with its refusals."""
    answered: tuple[Answered, ...]
    """Benign requests, with the model's answers."""
    decisions: Mapping[Site, tuple[np.ndarray, ...]] = field(default_factory=dict, compare=False)
    """Activations at the decision position, (N, D) of each of the three classes, of the sites at
    which they were taken when the requests were answered."""

    def __post_init__(self) -> None:
        for name in CLASSES:
            if not getattr(self, name):
                raise FitError(
                    f"no example of the class {name!r} to fit on: a repair needs attacks that "
                    "worked, malicious requests that were refused, and answered benign requests"
                )

    @cached_property
    def goals(self) -> dict[str, Any]:
        """Digests of all goals, by which an artefact's leaks are told
        (`care.evaluation.leak_check`)."""
        examples = [e for name in CLASSES for e, _ in getattr(self, name)]
        return {"scheme": SCHEME, "digests": sorted(goal_digests(examples))}


def gather(
    vlm: VLM,
    attacks: Sequence[Example],
    benign: Sequence[Example],
    *,
    judge: RulesJudge | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 12,
    sites: Sequence[Site] = (),
    progress: Callable[[int], None] | None = None,
    seen: Callable[[Sequence[Example], Sequence[str]], None] | None = None,
    kept: KeptBatches | None = None,
) -> Material:
    """Let the model answer, and sort its answers by outcome.

    With `sites`, activations at the decision position are taken on the way, from the same reading
    of the prompts. Batches that are `kept` aren't asked again; `seen` gets the requests and answers
    of each batch when it is there. FitError if no attack worked, no
    malicious request was refused, or no benign one answered.
    """
    requests = [*attacks, *benign]

    def work(chunk: list[int]) -> list[tuple[str, dict[Site, np.ndarray]]]:
        reading = vlm.prefill([requests[place] for place in chunk], batch_size=len(chunk))
        answers = vlm.generate(reading, max_new_tokens=max_new_tokens, stop=certainly_refused)
        rows = decisions(vlm, reading, sites) if sites else {}
        return [(a, {site: rows[site][place] for site in sites}) for place, a in enumerate(answers)]

    asking = work
    if kept is not None:
        facts = {"sites": [str(site) for site in sites], "max_new_tokens": max_new_tokens}
        digests = [example_digest(request) for request in requests]
        asking = kept.over(work, digests, facts, _packed, partial(_unpacked, sites))

    def showing(chunk: list[int]) -> list[tuple[str, dict[Site, np.ndarray]]]:
        done = asking(chunk)
        if seen is not None:
            seen([requests[place] for place in chunk], [answer for answer, _ in done])
        return done

    found = vlm.in_batches(requests, batch_size, showing, progress)
    verdicts = (judge or RulesJudge())([e.goal for e in requests], [answer for answer, _ in found])
    classes: dict[str, list[int]] = {name: [] for name in CLASSES}
    for place, (example, verdict) in enumerate(zip(requests, verdicts, strict=True)):
        if verdict.failure(example.kind) is not None:
            continue  # what can't be judged belongs to no class
        name = _CLASS_OF.get((example.kind, verdict.outcome(example.kind)))
        if name is not None:
            classes[name].append(place)
    return Material(
        **{name: tuple((requests[i], found[i][0]) for i in part) for name, part in classes.items()},
        decisions={
            site: tuple(np.array([found[i][1][site] for i in part]) for part in classes.values())
            for site in sites
        },
    )


_Found = list[tuple[str, dict[Site, np.ndarray]]]
"""Of each request of a batch the answer and the activations."""


def _packed(found: _Found) -> dict[str, np.ndarray]:
    sites = found[0][1]
    rows = {str(site): np.array([each[site] for _, each in found]) for site in sites}
    return {"answers": texts_to([answer for answer, _ in found])} | rows


def _unpacked(sites: Sequence[Site], arrays: dict[str, np.ndarray]) -> _Found:
    answers = texts_from(arrays["answers"])
    return [(a, {s: arrays[str(s)][place] for s in sites}) for place, a in enumerate(answers)]


# -- contrasts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """Two classes and the tokens that are compared."""

    malicious: tuple[Answered, ...]
    """(example, answer) of the malicious class."""
    benign: tuple[Answered, ...]
    """(example, answer) of the benign class."""
    scope: Scope
    """Tokens whose activations are pooled: `image`, `text` or `response`."""

    def __post_init__(self) -> None:
        for name in ("malicious", "benign"):
            if not getattr(self, name):
                raise FitError(
                    f"the {name} class of the contrast on {self.scope} tokens is empty; pass "
                    "examples of both classes"
                )


def contrast(name: ContrastName, material: Material) -> Contrast:
    """The contrast `name` (table above) of `material`."""
    if name == "images":
        return Contrast(
            _pictures(material.complied + material.refused), _pictures(material.answered), "image"
        )
    if name == "comply-rest":
        return Contrast(material.complied, material.refused + material.answered, "response")
    if name != "comply-refuse":
        raise FitError(f"unknown contrast {name!r}: use images, comply-refuse or comply-rest")
    refusals = tuple(answer for _, answer in material.refused)
    same = tuple(
        (example, refusals[i % len(refusals)]) for i, (example, _) in enumerate(material.complied)
    )
    return Contrast(material.complied, same, "response")


def _pictures(answered: Sequence[Answered]) -> tuple[Answered, ...]:
    """Those with images, each different list of images once, whatever it was loaded from."""
    kept: dict[tuple[str, ...], Answered] = {}
    for example, answer in answered:
        if example.images:
            kept.setdefault(content(example), (example, answer))
    return tuple(kept.values())


# -- activations -----------------------------------------------------------------------------------


def decisions(vlm: VLM, prefill: PromptCache, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
    """Activations (N, D) at the decision position, from prompts that have been read."""
    found = {
        site: np.zeros((len(prefill.examples), vlm.anatomy.site_width(site)), np.float32)
        for site in sites
    }
    for indices, start in prefill.parts:
        with read(vlm, list(sites)) as recorder:
            first_logits(vlm.model, vlm.roles, start)
        for site in sites:
            rows = recorder.rows(site, ("decision",))  # answers may have been begun after it
            found[site][indices] = rows.float().cpu().numpy()
    return found


def content(example: Example) -> tuple[str, ...]:
    """SHA-256 of the size and pixels of each image."""
    return tuple(
        hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
        for image in example.load_images()
    )


def pool(h: Tensor, roles: Tensor, scope: Scope) -> Tensor:
    """Mean activation of each row over the tokens in scope: (B, T, D), (B, T) -> (B, D)."""
    weights = scope_mask(roles, (scope,)).to(torch.float32)
    counts = weights.sum(1, keepdim=True)
    if bool((counts == 0).any()):
        raise FitError(f"an example has no token in scope {scope!r}; fit on examples that have one")
    return torch.einsum("btd,bt->bd", h.float(), weights) / counts


@torch.no_grad()
def activations(
    vlm: VLM,
    answered: Sequence[Answered],
    sites: Sequence[Site],
    scope: Scope,
    batch_size: int = 16,
    attribution: AttributionConfig | None = None,
) -> dict[Site, np.ndarray]:
    """Pooled activations (N, D) at each site, in the order of `answered`.

    With an `attribution`, of the attributed tokens of the picture (`image`), of the answer
    (`response`) or of the request (`text`); the decision position is one token.
    """
    if not answered:
        return {site: np.zeros((0, vlm.anatomy.site_width(site)), np.float32) for site in sites}
    order = sorted(range(len(answered)), key=lambda i: len(answered[i][0].prompt))
    rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
    with read(vlm, list(sites)) as recorder:
        for start in range(0, len(order), batch_size):
            chunk = [answered[i] for i in order[start : start + batch_size]]
            asked_alone = scope in ("image", "text", "decision")
            responses = None if asked_alone else [answer for _, answer in chunk]
            vlm.forward(vlm.batch([example for example, _ in chunk], responses), logits_to_keep=1)
            for site in sites:
                h, roles = recorder[site]
                if attribution is None or scope == "decision":
                    pooled = pool(h, roles, scope)
                else:
                    modality = "image" if scope == "image" else "text"
                    pooled = attributed(h, roles, modality, attribution)
                rows[site].append(pooled.cpu())
    back = np.argsort(order)
    return {site: torch.cat(parts).numpy()[back] for site, parts in rows.items()}


def said(material: Material) -> list[Said]:
    """The material as monitors are fitted on it: answers, and whether they are harmful."""
    harmless = [*material.refused, *material.answered]
    return [(e, answer, True) for e, answer in material.complied] + [
        (e, answer, False) for e, answer in harmless
    ]


# -- stored ----------------------------------------------------------------------------------------


def material_to(material: Material) -> dict[str, Any]:
    """Answers by class, as plain values; without activations."""
    return {name: [[e.id, answer] for e, answer in getattr(material, name)] for name in CLASSES}


def material_from(
    facts: Mapping[str, Any],
    examples: Sequence[Example],
    decisions: Mapping[Site, tuple[np.ndarray, ...]] | None = None,
) -> Material:
    """Inverse of `material_to`, given the examples that were asked and activations, if any."""
    known = {example.id: example for example in examples}
    if len(known) < len(examples):
        raise DataError("two examples to fit on have the same id; give each its own")

    def part(name: str) -> tuple[Answered, ...]:
        return tuple((known[i], answer) for i, answer in facts[name])

    return Material(part("complied"), part("refused"), part("answered"), decisions or {})


def save_decisions(path: Path, material: Material) -> None:
    """Write the activations of `material` as safetensors, whole or not at all."""
    tensors = {
        f"{site}/{name}": np.ascontiguousarray(rows)
        for site, parts in material.decisions.items()
        for name, rows in zip(CLASSES, parts, strict=True)
    }
    write_whole(path, safetensors.numpy.save(tensors))


def load_decisions(path: Path) -> dict[Site, tuple[np.ndarray, ...]]:
    """What `save_decisions` wrote; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        tensors = safetensors.numpy.load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error}): delete it and resume") from error
    sites = dict.fromkeys(key.rsplit("/", 1)[0] for key in tensors)
    return {
        Site.parse(site): tuple(tensors[f"{site}/{name}"] for name in CLASSES) for site in sites
    }
