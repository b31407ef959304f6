"""Defenses: anything that is put on a model and taken off again; a repair is one.

A defense overrides what it does, and the rest does nothing:

    applied      edits activations or weights while a context is open
    rewritten    makes another request of a request: its text, its pictures
    answer       asks the model itself: twice, with a look at the answer in between, or not at all
    stream       the same for one request, piece by piece while the answer is made
    revised      makes answers of the undefended model's, where it begins with those anyway
    changed      tells which of the undefended model's answers it leaves as they are

What measures a defense asks for its `answer` and never goes past it (`answers_under`). Only an
attack does: it descends through `applied` alone, since text can't be differentiated through, so
that against a defense which rewrites or asks again its figures are those of a weaker attacker
(`care.attacks.adaptive`). How to write one is in docs/adding-a-defense.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from care.defenses.cost import Cost
from care.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from care.data.example import Example, Suite
    from care.models.edit_stats import EditStats
    from care.models.prompt_cache import PromptCache
    from care.models.responses import Answer
    from care.models.sites import Scope
    from care.models.streaming import Streamed
    from care.models.vlm import VLM

Touches = Literal["decision", "prompt", "request", "dialogue", "weights"]
"""What a defense changes: activations from the last position of a prompt on (`decision`) or at any
position (`prompt`), the text or pictures of a request (`request`), how often and about what the
model is asked (`dialogue`), or the model's weights (`weights`)."""


class Defense:
    """Put on a model, taken off again. Override what the defense does; the rest does nothing."""

    name: str
    """Name in tables; the registered one unless another is given."""

    touches: Touches = "prompt"
    """What it changes. Decides whether prompts may be read once for several defenses
    (`reads_undefended`), so claim `decision` only where nothing before it is edited."""

    stored_as: ClassVar[str | None] = None
    """Name of the file by which a folder of this class is told; None: it can't be stored."""

    registered_as: ClassVar[str] = ""
    """The name that it is registered by, which `register` sets."""

    paper: ClassVar[str] = ""
    """Where it was published, as authors, year and arXiv number."""

    cost: Cost = Cost()
    """What it costs beyond the bare model, as its method has it: a class says it of its defaults,
    an instance of its settings."""

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Options of `fit` that the paper leaves open, or chooses for each model, with the values that
    are tried when it is set at its best."""

    unfitted: ClassVar[tuple[str, ...]] = ()
    """Options of `fit` that don't enter it: fields which may be replaced afterwards, to the same
    effect."""

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        **options: Any,
    ) -> Self:
        """Make the defense from malicious and benign requests."""
        raise UsageError(
            f"{cls.__name__} isn't fitted on requests; make it by its constructor, or override fit."
        )

    def check(self, vlm: VLM) -> None:
        """Raise ArtefactError where the defense was made for another model."""

    def applied(self, vlm: VLM) -> AbstractContextManager[EditStats | None]:
        """A context in which activations or weights of `vlm` are edited; yields counts, if any."""
        return nullcontext()

    def rewritten(self, example: Example) -> Example:
        """The request that the model gets in place of `example`; keep its id."""
        return example

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """An answer to each example, as `VLM.answers` gives them; `how` are that one's options."""
        with self.applied(vlm):
            return vlm.answers([self.rewritten(example) for example in examples], **how)

    def stream(
        self, vlm: VLM, example: Example, *, hold: int | None = None, **how: Any
    ) -> Iterator[Streamed]:
        """Pieces of text while one example is answered, and at last its answer, that of `answer`.

        The first `hold` tokens are kept back until all of them are there. A defense that answers
        in its own way gives its answer in one piece, unless it has a stream of its own. The model
        stays edited while the stream is open: ask it nothing else before, and close a stream that
        isn't read to its end.
        """
        if not overrides(self, "answer"):
            return self.edited_stream(vlm, example, hold, how)
        [answer] = self.answer(vlm, [example], **how)
        return iter([answer.text, answer])

    def edited_stream(
        self, vlm: VLM, example: Example, hold: int | None, how: dict[str, Any]
    ) -> Iterator[Streamed]:
        """`stream` of the model as `applied` edits it, asked what is `rewritten`."""
        from care.models.streaming import pieces

        with self.applied(vlm), closing(pieces(vlm, self.rewritten(example), hold, **how)) as found:
            yield from found

    @property
    def owns_answers(self) -> bool:
        """Whether it asks in its own way, so that `applied` isn't all that it does."""
        return overrides(self, "rewritten", "answer")

    @property
    def revises(self) -> bool:
        """Whether it begins with the undefended model's answers, so that known ones will do."""
        return overrides(self, "revised")

    def revised(
        self, vlm: VLM, examples: Sequence[Example], answers: Sequence[Answer], **how: Any
    ) -> list[Answer]:
        """What `answer` gives, where the undefended model's answers are known; `how` as there."""
        return self.answer(vlm, examples, **how)

    def changed(self, vlm: VLM, prompts: PromptCache) -> np.ndarray | None:
        """Which of the answers to N prompts that were read it may change (N,); None: any of them.

        The others have to be the undefended model's to the bit: they are taken from there, where
        these are known, and not decoded again.
        """
        return None

    def digest(self) -> str | None:
        """SHA-256 of all that it does, to which a run is held; None of one that can't tell."""
        return None

    def save(self, folder: str | Path) -> Path:
        """Write the defense into a folder, whole or not at all, and return the folder."""
        raise UsageError(
            f"{type(self).__name__} can't be stored; override save, load and stored_as."
        )

    @classmethod
    def load(cls, folder: str | Path, vlm: VLM | None = None) -> Self:
        """Read what `save` wrote, checked, also against `vlm` if it is given."""
        raise UsageError(f"{cls.__name__} can't be stored; override save, load and stored_as.")


def touched(scopes: Sequence[Scope]) -> Touches:
    """What edits of activations in these scopes touch."""
    return "decision" if set(scopes) <= {"decision", "response"} else "prompt"


def overrides(defense: Defense, *methods: str) -> bool:
    """Whether the defense has one of these methods of its own."""
    return any(getattr(type(defense), name) is not getattr(Defense, name) for name in methods)


def reads_undefended(defense: Defense | None) -> bool:
    """Whether prompts may be read before it is put on, once for all such defenses.

    That is so for the bare model and for a defense that touches the decision alone, and neither
    rewrites what is asked nor asks in its own way.
    """
    if defense is None:
        return True
    return defense.touches == "decision" and not defense.owns_answers


def answers_under(
    defense: Defense | None, vlm: VLM, examples: Sequence[Example], **how: Any
) -> list[Answer]:
    """The answers of `vlm` under a defense; None is the bare model."""
    examples = list(examples)
    return vlm.answers(examples, **how) if defense is None else defense.answer(vlm, examples, **how)


def stream_under(
    defense: Defense | None, vlm: VLM, example: Example, hold: int | None = None, **how: Any
) -> Iterator[Streamed]:
    """The stream of one answer under a defense; None is the bare model."""
    return (Defense() if defense is None else defense).stream(vlm, example, hold=hold, **how)


# -- registry --------------------------------------------------------------------------------------

Kind = TypeVar("Kind", bound=type[Defense])

_REGISTERED: dict[str, type[Defense]] = {}


def register(name: str) -> Callable[[Kind], Kind]:
    """`@register("adashield")` above a class: `load_defense` finds it by that name.

    A class without a `name` of its own is called so in tables. UsageError for a name that is taken
    by another class, or a class that isn't a `Defense`.
    """

    def add(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Defense)):
            raise UsageError(
                f"A registered defense is a class derived from care.defenses.Defense, but {name!r} "
                f"is {kind!r:.80}; derive it."
            )
        taken = _REGISTERED.get(name)
        if taken is not None and _home(taken) != _home(kind):
            raise UsageError(
                f"A defense called {name!r} is registered already ({_home(taken)}); register "
                f"{_home(kind)} by another name."
            )
        kind.registered_as = name
        if not hasattr(kind, "name"):
            kind.name = name
        _REGISTERED[name] = kind
        return kind

    return add


def registered() -> dict[str, type[Defense]]:
    """The registered classes by name, of the modules that are imported."""
    return dict(_REGISTERED)


def _home(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
