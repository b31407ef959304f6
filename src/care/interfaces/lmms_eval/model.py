"""care as a model of lmms-eval: `lmms-eval --model care --model_args pretrained=…,repair=…`.

lmms-eval has the tasks, with the prompts and the scoring that are published with them; this class
answers, in batches, under a repair if one is named. It is what lmms-eval calls a simple model: the
pictures of a request come before its text, as in `Example`. Needs the extra `lmms-eval`. Not here:
video, sound, several rounds, several processes (each is an error), and how requests are read
(`care.interfaces.requests.decoding`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, cast

import torch

from care.data.example import Example
from care.defenses.base import Defense
from care.defenses.loading import load_defense
from care.errors import MissingDependencyError, UsageError
from care.interfaces.requests.decoding import BLANK_LINE, Decoding, read_decoding, read_pictures
from care.models.alarms import Source
from care.models.spec import EMBEDDED, ModelSpec, Precision
from care.models.thoughts import answer_of
from care.models.vlm import VLM, Answer

try:
    from lmms_eval import utils  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
        GenerationResult,
    )
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
    from loguru import logger  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingDependencyError(
        f"Running tasks of lmms-eval needs that package ({error}); run: "
        "pip install 'care-vlm[lmms-eval]'"
    ) from error
from tqdm import tqdm

_AUTO = 16
"""Where halving starts with batch_size=auto and no max_batch_size."""

_WINDOW = 8
"""Batches whose pictures are held decoded at a time."""

_LOADING = ("revision", "device_map", "quantize", "attn_implementation", "trust_remote_code")
_OPTIONS = ("dtype", "device", "batch_size", "max_batch_size", "seed", "blank_line_stops")


def manifest() -> Any:
    """What the entry point of group `lmms_eval.models` gives: the name and where the class is."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest("care", simple_class_path=f"{__name__}.{CareModel.__name__}")


class CareModel(lmms):
    """A VLM, repaired while it answers."""

    is_simple = True

    def __init__(
        self,
        pretrained: str | VLM = EMBEDDED,
        repair: str | Defense | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int = 0,
        blank_line_stops: bool = False,
        **loading: Any,
    ) -> None:
        """A model by name (with `loading` as in `VLM.from_pretrained`) or loaded; its repair.

        `seed` is of sampled answers. UsageError for unknown or contradicting arguments.
        """
        super().__init__()
        _check_single_process()
        self._batch_size = _batch_size(batch_size, max_batch_size)
        self._seed = _of_type("seed", seed, int, "a whole number")
        self._blank_line_stops = _of_type(
            "blank_line_stops", blank_line_stops, bool, "true or false"
        )
        # The repair is read first: a wrong folder shows before a large model is loaded.
        self._repair = _repair(repair)
        self._by_name = not isinstance(pretrained, VLM)
        self._vlm: VLM | None = _load(pretrained, dtype, device, loading)
        if self._repair is not None:
            self._repair.check(self._vlm)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str | Mapping[str, Any], additional_config: dict[str, Any] | None = None
    ) -> CareModel:
        """From `--model_args` and what other options of the command line say."""
        given = _arguments(arg_string)
        more = {k: v for k, v in (additional_config or {}).items() if v is not None}
        # The command line always passes a batch size, 1 unless the user says otherwise.
        if "batch_size" in given and str(more.get("batch_size")) == "1":
            del more["batch_size"]
        for name in given.keys() & more.keys():
            if str(given[name]) != str(more[name]):
                raise UsageError(
                    f"--model_args says {name}={given[name]}, but --{name} is {more[name]}; "
                    "say it once."
                )
        return cls(**{**more, **given})

    @property
    def vlm(self) -> VLM:
        """The model; UsageError once an evaluation has finished and released it."""
        if self._vlm is None:
            raise UsageError(
                "lmms-eval released this model after its evaluation; make another one, or pass a "
                "loaded VLM, which is kept."
            )
        return self._vlm

    @property
    def batch_size(self) -> int:
        """Examples that are answered together."""
        return self._batch_size

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.vlm.device

    # -- what lmms-eval calls --------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer per request, in order, without the model's thoughts."""
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):  # all are read before the first answer
            groups.setdefault(self._decoding(request), []).append(index)
        answers, unfinished, decided = [""] * len(requests), 0, Counter[str]()
        with self._answering() as answers_to, tqdm(total=len(requests), desc="care") as bar:
            for decoding, indices in groups.items():
                # Equal requests get different samples only if they are answered in one call.
                size = len(indices) if decoding.temperature else self.batch_size * _WINDOW
                for window in _windows(indices, size):
                    found = answers_to(
                        [self._example(requests[index]) for index in window],
                        max_new_tokens=decoding.max_new_tokens,
                        batch_size=self.batch_size,
                        temperature=decoding.temperature,
                        seed=decoding.seed,
                        stop=decoding.stop,
                        progress=_ticks(bar),
                    )
                    for index, answer in zip(window, found, strict=True):
                        said = answer_of(answer.text, self.vlm.thought_tags)
                        unfinished += said is None
                        decided[answer.source] += bool(answer.alarms)
                        answers[index] = "" if said is None else _cut(said, decoding, answer.source)
        if unfinished:
            logger.warning(
                f"{unfinished} of {len(requests)} answers ended within the model's thoughts and "
                "are given as empty; allow longer ones with --gen_kwargs max_new_tokens=N."
            )
        if +decided:
            told = ", ".join(f"{source} {n}" for source, n in sorted((+decided).items()))
            logger.info(f"Monitors decided {decided.total()} of {len(requests)} answers: {told}.")
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """For each request the *loss* of its continuation in nats per token, and whether greedy
        decoding would give it, as the `text` of a result.

        The loss, not the likelihood that the name promises: lmms-eval takes the smallest, since
        that is what its own models return. In a result, because the evaluator of 0.7 makes text
        of a bare pair and then can't score it.
        """
        continuations = [self._continuation(request) for request in requests]
        found: list[Any] = []
        if self._repair is not None and self._repair.owns_answers:
            raise UsageError(
                f"The defense {self._repair.name!r} gives answers of its own, of which there is no "
                "likelihood; choose a task that asks for answers."
            )
        with self._repaired(), tqdm(total=len(requests), desc="care") as bar:
            for window in _windows(range(len(requests)), self.batch_size * _WINDOW):
                score = self.vlm.score(
                    [self._asked(self._example(requests[index])) for index in window],
                    [continuations[index] for index in window],
                    batch_size=self.batch_size,
                )
                pairs: Any = zip((-score.mean).tolist(), score.greedy.tolist(), strict=True)
                found += [GenerationResult(pair) for pair in pairs]
                bar.update(len(window))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """UsageError: an example is one request."""
        raise UsageError(
            f"Task {_task(requests[0])!r} is a conversation of several rounds; care answers single "
            "requests, so choose another task."
        )

    def generate_visual_cot(self, requests: Sequence[Any]) -> NoReturn:
        """UsageError: nothing here draws."""
        raise UsageError(
            f"Task {_task(requests[0])!r} wants the model to draw; care answers in text, so choose "
            "another task."
        )

    def clean(self) -> None:
        """Release a model that was loaded here, so that a judge finds room on the device."""
        if self._by_name:
            self._vlm = None
        super().clean()

    @property
    def chat_template(self) -> NoReturn:
        """UsageError: what `--apply_chat_template` asks for."""
        raise UsageError(
            "care writes every request in the model's own chat template; leave out "
            "--apply_chat_template."
        )

    apply_chat_template = chat_template

    # -- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _answering(self) -> Iterator[Callable[..., list[Answer]]]:
        """What answers examples while this is open: the model repaired, or the defense itself."""
        if self._repair is not None and self._repair.owns_answers:
            yield partial(self._repair.answer, self.vlm)
            return
        with self._repaired():
            yield lambda examples, **how: self.vlm.answers([*map(self._asked, examples)], **how)

    def _asked(self, example: Example) -> Example:
        return example if self._repair is None else self._repair.rewritten(example)

    @contextmanager
    def _repaired(self) -> Iterator[None]:
        """The repair, on while this is open; at the end it is said how much was edited."""
        if self._repair is None:
            yield
            return
        with self._repair.applied(self.vlm) as stats:
            yield
        if stats is None:  # it edits no activations
            return
        said = f"The repair {self._repair.name!r} changed {stats.tokens} (site, token) pairs"
        if stats.tokens:
            logger.info(f"{said}, by {stats.relative_norm:.3f} of an activation's length on mean.")
        else:
            logger.warning(f"{said}: these answers are those of the unrepaired model.")

    def _decoding(self, request: Any) -> Decoding:
        asked = request.args[1]
        if asked.get("until") in (BLANK_LINE, [BLANK_LINE]) and not self._blank_line_stops:
            _say_once(
                "until is a blank line, lmms-eval's default where a task states none, so answers "
                "go on after one; with blank_line_stops=true in --model_args they end there."
            )
        decoding = read_decoding(_task(request), asked, self._blank_line_stops)
        return replace(decoding, seed=self._seed)

    def _example(self, request: Any) -> Example:
        context, _, doc_to_visual, doc_id, task, split = request.args
        where = f"{task}-{doc_id}"
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if not isinstance(context, str):
            raise UsageError(f"The prompt of {where} is no text but {type(context).__name__}.")
        return Example(where, context, images=read_pictures(f"Request {where}", visuals))

    def _continuation(self, request: Any) -> str:
        if len(request.args) != 6:
            raise UsageError(
                f"Task {_task(request)!r} asks for the likelihood of an answer to nothing (mutual "
                "information), which a chat model doesn't have; choose another metric."
            )
        _, wanted, _, doc_id, task, split = request.args
        text = wanted(self.task_dict[task][split][doc_id]) if callable(wanted) else wanted
        if not isinstance(text, str):
            raise UsageError(f"The answer of {task}-{doc_id} must be text, got {text!r}.")
        return text


def _check_single_process() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UsageError(
            f"lmms-eval was started in {processes} processes, but care runs in one; start it "
            "without a launcher, and spread a large model with device_map=auto."
        )


def _batch_size(asked: int | str, most: int | None) -> int:
    if asked == "auto" and (most is None or most > 0):  # VLM halves a batch that doesn't fit
        return most or _AUTO
    try:
        size = int(asked)
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(f"batch_size must be 1 or more, or auto, got {asked!r}.")
    if most is not None:
        raise UsageError("max_batch_size needs batch_size=auto; leave one of the two out.")
    return size


def _load(pretrained: str | VLM, dtype: str, device: str | None, loading: dict[str, Any]) -> VLM:
    if unknown := sorted(loading.keys() - set(_LOADING)):
        raise UsageError(
            f"--model_args has {', '.join(unknown)}, which care doesn't know; it knows pretrained, "
            f"repair, {', '.join((*_OPTIONS, *_LOADING))}."
        )
    if device is not None and loading.get("device_map") is not None:
        raise UsageError(f"device={device} and device_map contradict each other; pass one.")
    if loading and (isinstance(pretrained, VLM) or pretrained == EMBEDDED):
        raise UsageError(
            f"{', '.join(sorted(loading))} is of models that are loaded by name; the embedded "
            "or a loaded one doesn't take it."
        )
    if isinstance(pretrained, VLM):
        vlm = pretrained
    else:
        name = None if pretrained == EMBEDDED else _text("pretrained", pretrained)
        vlm = ModelSpec(name, dtype=cast(Precision, dtype), **loading).load()
    if device is not None:
        _move(vlm, device)
    return vlm


def _move(vlm: VLM, device: str) -> None:
    try:
        vlm.model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"{vlm.name} can't be put on device {device!r} ({reason}).") from error


def _repair(repair: str | Defense | None) -> Defense | None:
    if repair is None or isinstance(repair, Defense):
        return repair
    return load_defense(_text("repair", repair))


def _text(name: str, value: Any) -> str:
    # lmms-eval reads what looks like a number as one.
    return _of_type(name, value, str, f"a name or a folder (./{value}, if that is its name)")


def _of_type(name: str, value: Any, kind: type, wanted: str) -> Any:
    if type(value) is not kind:  # True is an int, but no seed
        raise UsageError(f"{name} must be {wanted}, got {value!r}.")
    return value


def _arguments(given: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, str):
        return dict(given)
    try:
        return utils.simple_parse_args_string(given)
    except ValueError as error:
        raise UsageError(f"--model_args must be name=value,name=value, got {given!r}.") from error


def _task(request: Any) -> str:
    return str(request.task_name)


def _cut(answer: str, decoding: Decoding, source: Source) -> str:
    cut = answer if source == "refusal" else decoding.cut(answer)
    return answer if cut == answer else cut.strip()


def _ticks(bar: Any) -> Callable[[int], None]:
    def advance(finished: int) -> None:
        bar.update(finished)

    return advance


def _windows(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)
