"""Suites as Inspect's tasks: any that `care.load_suite` knows, and files of one's own.

    inspect eval care/suite -T name=figstep -T limit=50 --model care/embedded

A sample has the example's id, its images and its text, the references as target, and as metadata
its goal, kind, category, suite and role. The scorer follows the role of the suite; `--limit` of
Inspect takes the first samples, `-T limit=` draws as `care evaluate --limit` does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai import Task, task  # pyright: ignore[reportMissingImports]
from inspect_ai.dataset import MemoryDataset, Sample  # pyright: ignore[reportMissingImports]
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
)
from inspect_ai.solver import generate  # pyright: ignore[reportMissingImports]

from care.interfaces.inspect.scorers import answered, attack_success, correct
from care.interfaces.inspect.shared import one_sentence, qualified

if TYPE_CHECKING:
    from PIL import Image

    from care.data.example import Example, Suite


@task(name=qualified("suite"))
def suite(
    name: str,
    limit: int | None = None,
    seed: int = 0,
    judge: str | list[str] = "rules",
    split: str = "test",
    path: str | None = None,
    images: str | None = None,
) -> Task:
    """A suite by name or .jsonl file, judged by a judge of `care list judges`.

    `limit` and `seed` draw a sample, `split` is of the small world's suites, `path` and `images`
    are local copies of a published suite and its pictures; see `care.load_suite`.
    """
    from care.data.registry import load_suite

    with one_sentence():
        found = load_suite(name, split, path=path, images=images, limit=limit, seed=seed)
        dataset = samples(found, found.role)
    return Task(
        name=found.name,
        dataset=MemoryDataset(dataset, name=found.name, location=found.source or None),
        solver=generate(),
        scorer=_scorer(found, judge),
        metadata={
            "suite": found.name,
            "role": found.role,
            "licence": found.licence,
            "source": found.source,
            "revision": found.revision,
        },
    )


def samples(examples: Iterable[Example], role: str) -> list[Sample]:
    """Inspect's samples of examples that belong to a suite of this role."""
    return [
        Sample(
            id=example.id,
            input=messages(example),
            target=list(example.references) or "",
            metadata={
                "goal": example.goal or example.prompt,
                "kind": example.kind,
                "category": example.category,
                "suite": example.suite,
                "role": role,
            },
        )
        for example in examples
    ]


def messages(example: Example) -> list[Any]:
    """The system message, if any, the user's (images, then text), and the answer's opening."""
    content: list[Any] = [ContentImage(image=_address(image)) for image in example.images]
    if example.prompt:
        content.append(ContentText(text=example.prompt))
    user = ChatMessageUser(content=content if example.images else example.prompt)
    system = [] if example.system is None else [ChatMessageSystem(content=example.system)]
    begun = [ChatMessageAssistant(content=example.opening)] if example.opening else []
    return [*system, user, *begun]


def _scorer(found: Suite, judge: str | list[str]) -> Any:
    if found.role == "attack":
        return attack_success(judge=judge)
    if any(example.references for example in found):
        return correct(judge=judge)
    return answered(judge=judge)


def _address(image: Image.Image | str | Path) -> str:
    """A file's full path, since Inspect may run elsewhere, or a PNG as a data URI."""
    if isinstance(image, (str, Path)):
        return str(Path(image).absolute())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
