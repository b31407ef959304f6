"""Weights that fill their model, and one sentence where they don't or where files are damaged.

transformers fills what the files don't hold with random numbers, and leaves out what the
configuration has no place for; its report of both is a table on the terminal. Here either is an
error:

    missing       a tensor of the model that is neither in the files nor tied to one that is
    mismatched    a tensor of another shape
    left out      a layer beyond those of the configuration, or a bias that it switches off

Other tensors that are left over (buffers that older releases saved, heads of another task) are
sound. Not here: whether the model takes images, and its processor (`loading`).
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from care.errors import CareError, MissingDependencyError, ModelError
from care.models.memory import out_of_memory

MOST_LAYERS = 10_000
"""More of anything that is counted in layers is damage; building them would take for ever."""

_SHOWN = 3


def load_whole(loader: Any, name: Any, what: str, **options: Any) -> Any:
    """`loader.from_pretrained(name, **options)`, unless a weight isn't the files'.

    `what` names it in errors, such as "the model x". Raises ModelError.
    """
    model, told = loader.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    odd = [
        f"{key} is {tuple(there)} instead of {tuple(here)}"
        for key, there, here in sorted(told["mismatched_keys"], key=str)
    ]
    for problem, keys in (
        ("tensors are missing from its files", told["missing_keys"]),
        ("tensors have another shape in its files than in its configuration", odd),
        (
            "tensors of its files have no place in its configuration",
            left_out(model, told["unexpected_keys"]),
        ),
    ):
        if keys:
            raise ModelError(
                f"{what[0].upper()}{what[1:]} isn't whole: {len(keys)} {problem} "
                f"({_few(sorted(keys))}), so it would be another model; fetch it again, or correct "
                "its config.json."
            )
    return model


def left_out(model: Any, unexpected: Collection[str]) -> list[str]:
    """Those of the `unexpected` tensors that the model would have had with other settings.

    These are tensors of a layer of which the model has others, and parameters that one of its
    modules could have but hasn't, such as a bias.
    """
    if not unexpected:
        return []
    known = set(model.state_dict())
    modules = dict(model.named_modules())

    def belongs(key: str) -> bool:
        parent, _, leaf = key.rpartition(".")
        switched_off = parent in modules and leaf in modules[parent]._parameters
        numbers = [match.span() for match in re.finditer(r"(?<=\.)\d+(?=\.)", key)]
        return switched_off or any(f"{key[:a]}0{key[b:]}" in known for a, b in numbers)

    return [key for key in unexpected if belongs(key)]


def check_counts(config: Any, what: str) -> None:
    """ModelError for a configuration whose number of layers is no number of layers."""

    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                walk(value, f"{path}.{key}" if path else str(key))
            return
        counts = path.rpartition(".")[2] in ("depth", "n_layer") or path.endswith("_layers")
        if counts and type(part) in (int, float) and not 0 <= part <= MOST_LAYERS:
            raise ModelError(
                f"{what[0].upper()}{what[1:]} can't be built: its config.json says {path} = "
                f"{part!r:.40}; fetch it again."
            )

    walk(config.to_dict(), "")


def check_json(name: str, file: str, revision: str | None) -> None:
    """ValueError for a file that is there but holds no JSON object.

    transformers takes a generation_config.json that it can't read for one that isn't there, and
    with it goes what ends an answer.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is not None and not isinstance(json.loads(Path(path).read_bytes()), dict):
        raise ValueError(f"{file} holds no JSON object")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever goes wrong while `what` is loaded into one sentence.

    Files that are damaged make the readers of pickles, JSON, safetensors and templates, and the
    code that builds the model, raise nearly every class there is.
    """
    try:
        yield
    except CareError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"Loading {what} needs more: {_line(error)}") from error
    except Exception as error:
        raise ModelError(f"{what[0].upper()}{what[1:]} could not be loaded{_why(error)}") from error


def _why(error: Exception) -> str:
    if "Unrecognized configuration class" in str(error):
        return (
            ": transformers doesn't know its configuration as that of such a model; check the name."
        )
    if out_of_memory(error):
        return f": there isn't enough memory for it ({_line(error)}); try another dtype or device."
    if isinstance(error, OSError):
        return f"; check the name, the network and access rights ({_line(error)})."
    return (
        f": its files are damaged or don't belong together ({type(error).__name__}: "
        f"{_line(error)}); fetch it again."
    )


def _line(error: Exception) -> str:
    """What the error says, in one line without its end."""
    said = " ".join(str(error).split()).rstrip(".")
    return said if len(said) <= 300 else f"{said[:299]}…"


def _few(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
