"""Stock vLLM, started here to make the answers that the repair's monitors read (`upstream`).

It is the command that `care export DIR --format vllm --drop monitors,gates --off WORD` prints, with
a word and a key that are drawn anew and known to this process and the child alone: the command line
holds the word's SHA-256, and the environment the key. It listens at a socket in a folder that no
other user can enter, not at a port. Where it doesn't say that the repair is on, or answers alike
with the channels closed and open, it isn't used. Not here: which engine is taken (`loading`).
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import torch

from care.defenses.artefact import local_folder
from care.defenses.base import Defense
from care.defenses.repair.repair import Repair
from care.errors import MissingDependencyError, ModelError, UsageError
from care.interfaces.serve.child import Child
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.failures import ModelStopped
from care.interfaces.serve.keys import BARE_KEYS_FROM, KEYS_FROM
from care.interfaces.serve.upstream import KEY_FROM, OFF_FROM, Upstream
from care.interfaces.vllm.command import module_command, serve_command, settings_for
from care.interfaces.vllm.settings import Settings
from care.models.vlm import VLM

PROGRAM = (sys.executable, "-P")
"""How Python is called."""

URL = "http://vllm/v1"
"""Its address, behind the socket: the host has to have a name."""

ROOM = 0.1
"""Share of the GPU's memory that is left to the model that reads here, beyond what it has."""

LONGEST = 60
"""Bytes of a folder's path, since a socket's may have no more than 107."""

_SECRETS = (KEYS_FROM, BARE_KEYS_FROM, KEY_FROM, OFF_FROM)

_LOOK = 0.2
"""Seconds between two looks at whether it answers."""


def check_installed() -> None:
    """MissingDependencyError where vLLM isn't there."""
    if find_spec("vllm") is None:
        raise MissingDependencyError(
            "vLLM isn't installed here; pip install vllm, or take --engine transformers."
        )


def start(
    config: ServeConfig, vlm: VLM, defense: Defense, started: Callable[[Child], None]
) -> tuple[Child, Upstream]:
    """A child that is ready, and how it is asked; `started` is told of it as soon as it is there.

    CareError, in one sentence, for what vLLM can't serve so.
    """
    check_installed()
    if not isinstance(defense, Repair):
        raise UsageError(
            f"vLLM can be given repairs alone, and {defense.name} is another defense; take "
            "--engine transformers."
        )
    word, key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    watched, folder = bool(defense.monitors), local_folder(config.repair)
    settings = settings_for(folder, edits_only=watched, opened=watched, word=word)
    scratch = new_scratch()
    try:
        words = command(config, vlm, settings, scratch)
        child = Child(words, environment(key), scratch, config.vllm_log)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    started(child)
    try:
        return child, _ready(child, scratch, config, settings, key, word)
    except BaseException:
        child.finish()
        raise


def leave_cores(held: ExitStack) -> None:
    """Where vLLM computes on this machine's cores too, read with half of the threads, as long as
    `held` isn't closed.

    Its worker keeps a core busy for a second after the last token. With a thread on every core each
    operation here would wait until the one on that core got a turn.
    """
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // 2))
        held.callback(torch.set_num_threads, threads)


def _ready(
    child: Child, scratch: Path, config: ServeConfig, settings: Settings, key: str, word: str
) -> Upstream:
    """How it is asked, once it answers as it should."""
    limits = httpx.Limits(max_connections=config.limits.max_waiting)
    where = socket_in(scratch)
    transport = httpx.HTTPTransport(uds=str(where), limits=limits)
    _wait(child, where, transport, config.model.shown)
    _check_log(child, settings)
    upstream = Upstream(URL, key=key, off=word, transport=transport)
    # Edits with gates may leave a request alone; opened channels change every one.
    if settings.parts == "opened" and not upstream.switches():
        raise ModelError(
            f"vLLM answers alike with the channels of the repair {settings.digest[:12]} closed and "
            "open; take --engine transformers."
        )
    return upstream


def command(config: ServeConfig, vlm: VLM, settings: Settings, scratch: Path) -> list[str]:
    """The words that start it; UsageError for what vLLM takes otherwise than transformers.

    What the user says comes after what is only a default, and before what has to be so.
    """
    # Where the model that reads is doesn't concern vLLM; both compute in the same precision.
    precision = str(vlm.dtype).removeprefix("torch.")
    model = replace(config.model, name=_folder_or_name(config, vlm, scratch), dtype=precision)  # pyright: ignore[reportArgumentType]
    words = module_command(serve_command(settings, replace(model, device_map=None)), PROGRAM)
    longest = config.limits.max_prompt_tokens + config.limits.max_answer_tokens
    if vlm.context is not None:
        words += ["--max-model-len", str(min(vlm.context, longest))]
    words += _share_of_memory(config, vlm)
    return [*words, *config.vllm_words, "--uds", str(socket_in(scratch))]


def environment(key: str) -> dict[str, str]:
    """Of the child: its key, none of this server's, and what its log has to hold."""
    found = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    found.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Proof that the repair is on is a line of its log.
    return found | {"VLLM_API_KEY": key, "VLLM_LOGGING_LEVEL": "INFO"}


def new_scratch() -> Path:
    """A folder that its owner alone can enter, with a path that leaves room for a socket's."""
    place = None if len(os.fsencode(tempfile.gettempdir())) < LONGEST else "/tmp"
    return Path(tempfile.mkdtemp(prefix="care-vllm-", dir=place))


def socket_in(scratch: Path) -> Path:
    """Where it listens."""
    return scratch / "socket"


def share_left(free: int, total: int) -> float:
    """The share of a GPU's memory that vLLM may have beside a model that is there already."""
    share = math.floor(100 * min(0.9, free / total - ROOM)) / 100
    if share < ROOM:
        raise UsageError(
            f"Of the GPU's memory {free / total:.0%} are free beside the model that reads, too "
            "little for vLLM; read on another device by --device-map cpu, or take --engine "
            "transformers."
        )
    return share


def _share_of_memory(config: ServeConfig, vlm: VLM) -> list[str]:
    option = "--gpu-memory-utilization"
    said = any(word.partition("=")[0].replace("_", "-") == option for word in config.vllm_words)
    if said or vlm.device.type != "cuda":
        return []
    return [option, f"{share_left(*torch.cuda.mem_get_info(0)):.2f}"]


def _folder_or_name(config: ServeConfig, vlm: VLM, scratch: Path) -> str:
    """What vLLM loads: the embedded model has to be written for it."""
    if config.model.name is not None:
        return config.model.name
    folder = scratch / "model"
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return str(folder)


def _wait(child: Child, where: Path, transport: httpx.BaseTransport, name: str) -> None:
    """Until it answers; UsageError where it ends instead."""
    client = httpx.Client(transport=transport, timeout=10)
    while child.alive:
        with suppress(httpx.TransportError):
            if _listens(where) and client.get("http://vllm/health").status_code == 200:
                return
        time.sleep(_LOOK)
    if child.ending:
        raise ModelStopped("The server ends before vLLM was ready.")
    raise ModelError(
        f"vLLM ended before it served {name} ({child.why()}); say what it needs by --vllm-args, or "
        "take --engine transformers."
    )


def _listens(where: Path) -> bool:
    """Whether anybody does at a socket; httpx would leave its end open where nobody does."""
    with socket.socket(socket.AF_UNIX) as own:
        return own.connect_ex(str(where)) == 0


def _check_log(child: Child, settings: Settings) -> None:
    shown = f"digest {settings.digest[:12]}"
    if not any("care: " in line and shown in line for line in child.said().splitlines()):
        raise ModelError(
            f"vLLM doesn't say that the repair {settings.digest[:12]} is on; install care-vlm in "
            "vLLM's environment and leave its plugin on, or take --engine transformers."
        )
