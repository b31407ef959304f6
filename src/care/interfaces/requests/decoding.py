"""How an answer is asked for from outside: length, temperature, seed, and where it ends.

One rule for every surface (`check_settings`): a setting is honoured, or neutral (it changes no
answer, such as nucleus sampling of a greedy one), or an error. None is dropped. Below it, what a
task of lmms-eval asks for, in care's words: how to decode, and which pictures. Not here: lmms-eval
and Inspect themselves, which this module doesn't import.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from PIL import Image

from care.errors import UsageError
from care.models.stops import StopTexts
from care.models.thoughts import TAGS, Tags

DEFAULT_NEW_TOKENS = 1024
"""Where a task states no length: what most models of lmms-eval take then."""

BLANK_LINE = "\n\n"
"""What lmms-eval puts into `until` where a task states none: a leftover of few-shot prompts for
base models, at which an answer of several paragraphs would end."""

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_OWN = ("max_new_tokens", "until", "do_sample", "temperature")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1),
    # Of LLaVA's own code: a picture goes to the processor as it is.
    "image_aspect_ratio": (None, "original"),
}
"""Values of other settings that change nothing."""
_HARMLESS_SAMPLED: dict[str, tuple[Any, ...]] = {"top_p": (None, 1), "top_k": (None, 0)}
"""The same of settings that greedy decoding doesn't look at."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is made; requests with equal ones are answered together."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    """Length of an answer in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    until: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    seed: int = 0
    """Of answers that are drawn."""

    def cut(self, answer: str, opening: str = "", tags: Tags = TAGS) -> str:
        """The answer up to the first of `until` behind the words that others began it with."""
        return StopTexts(self.until).after(opening, tags).cut(answer)

    @property
    def stop(self) -> StopTexts | None:
        """Whether an unfinished answer holds one of `until`; None where there are none."""
        return StopTexts(self.until) if self.until else None


def check_settings(
    asked: Mapping[str, Any],
    honoured: Collection[str],
    neutral: Callable[[str, Any], bool],
    told: Callable[[str, Any], str],
) -> None:
    """UsageError, in the words of `told`, for the first setting that is neither of the two."""
    for name, value in asked.items():
        if name not in honoured and not neutral(name, value):
            raise UsageError(told(name, value))


# -- lmms-eval -----------------------------------------------------------------------------------


def read_decoding(task: str, asked: Mapping[str, Any], blank_line_stops: bool = False) -> Decoding:
    """The `generation_kwargs` of a task; UsageError names the setting that can't be honoured.

    `until` of nothing but a blank line counts only with `blank_line_stops`.
    """
    temperature = _temperature(task, asked)
    check_settings(
        asked,
        _OWN,
        lambda name, value: _is_harmless(name, value, greedy=temperature == 0),
        lambda name, value: (
            f"Task {task!r} asks for {name}={value!r}, which care can't honour (it can: "
            f"{', '.join(_OWN)}); change the task, or a known setting with --gen_kwargs."
        ),
    )
    length = asked.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UsageError(f"Task {task!r}: max_new_tokens must be 1 or more, got {length!r}.")
    until = _until(task, asked.get("until"))
    if until == (BLANK_LINE,) and not blank_line_stops:
        until = ()
    return Decoding(length, temperature, until)


def _is_harmless(name: str, value: Any, greedy: bool) -> bool:
    if greedy and name in _HARMLESS_SAMPLED:
        return True
    return value in {**_HARMLESS, **_HARMLESS_SAMPLED}.get(name, ())


def _temperature(task: str, asked: Mapping[str, Any]) -> float:
    """0 where `do_sample` is off or the temperature is 0; 1 for sampling without a temperature."""
    sampled, value = asked.get("do_sample"), asked.get("temperature")
    if sampled not in (None, True, False):
        raise UsageError(f"Task {task!r}: do_sample must be true or false, got {sampled!r}.")
    if value is None:
        value = 1.0 if sampled else 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise UsageError(f"Task {task!r}: temperature must be 0 or positive, got {value!r}.")
    return 0.0 if sampled is False else float(value)


def _until(task: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise UsageError(f"Task {task!r}: until must be a list of non-empty texts, got {value!r}.")
    return tuple(texts)


def read_pictures(where: str, visuals: Any) -> tuple[Image.Image | str, ...]:
    """The pictures of a request; UsageError for video, sound and everything else."""
    if visuals is None:
        return ()
    found = visuals if isinstance(visuals, (list, tuple)) else [visuals]
    for visual in found:
        if not _is_picture(visual):
            kind = "video or sound" if isinstance(visual, (str, dict)) else type(visual).__name__
            shown = f" ({visual!r:.60})" if isinstance(visual, str) else ""
            raise UsageError(
                f"{where} holds {kind}{shown}; care answers about pictures and text only, so "
                "choose another task."
            )
    return tuple(found)


def _is_picture(visual: Any) -> bool:
    if isinstance(visual, str):
        return PurePath(visual).suffix.lower() in _PICTURES
    return isinstance(visual, Image.Image)
