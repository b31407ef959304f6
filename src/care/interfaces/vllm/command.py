"""The one line that serves a model with a repair's edits in vLLM.

Everything that `limits` would ask for is in it, so that it can be copied as it is. Nothing is
written and no model is loaded; what the model's architecture is, the repair itself says.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from care._version import __version__
from care.defenses import artefact
from care.defenses.repair.channel import RepairData
from care.errors import UsageError
from care.interfaces.vllm.limits import KINDS, REQUESTS, needs_no_prefix_cache
from care.interfaces.vllm.plugin import NATIVE
from care.interfaces.vllm.settings import KEY, Settings, hashed
from care.interfaces.vllm.tokens import scopes_of
from care.models.spec import EMBEDDED, ModelSpec
from care.typed import to_tree

PLAIN = {"repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""What a model's generation_config may say otherwise, which vLLM would heed where a request says
nothing of it, and transformers don't here."""


def settings_for(
    folder: Path, *, edits_only: bool = False, opened: bool = False, word: str | None = None
) -> Settings:
    """What `--additional-config` has to say of a repair in a folder.

    `edits_only` leaves monitors out, `opened` gates. With `word`, requests that hold it are
    answered without the repair. UsageError for monitors unless they are left out, and for a repair
    that edits nothing, or at other sites.
    """
    repair = artefact.load(folder)
    _check(repair, folder, edits_only)
    return Settings(
        repair=str(folder.resolve()),
        digest=artefact.digest(repair),
        version=__version__,
        parts="opened" if opened else "edits" if repair.monitors else None,
        switch=None if word is None else hashed(word),
    )


def serve_command(settings: Settings, model: ModelSpec) -> list[str]:
    """The words of the command; without a name, of the model that the repair was fitted on.

    UsageError for what vLLM takes otherwise than transformers.
    """
    for option in ("device_map", "quantize"):
        if getattr(model, option) is not None:
            raise UsageError(
                f"vLLM takes no {option.replace('_', '-')} as transformers does; leave it out, and "
                "add vLLM's own options to the command."
            )
    repair = artefact.load(settings.repair)
    fitted: dict[str, Any] = repair.manifest.get("model") or {}
    name = model.name or fitted.get("name")
    if not name or name == EMBEDDED:
        raise UsageError(
            f"vLLM loads folders and names of the Hub, and {name or 'no model'} is neither; name "
            "the folder of the model by --model."
        )
    revision = model.revision or (fitted.get("revision") if name == fitted.get("name") else None)
    said = json.dumps({KEY: to_tree(settings, "The settings")})
    words = ["vllm", "serve", name, "--additional-config", said, "--logits-processors", REQUESTS]
    words += ["--override-generation-config", json.dumps(PLAIN)]
    if needs_no_prefix_cache(scopes_of(repair.channels), settings):
        words.append("--no-enable-prefix-caching")
    if fitted.get("class") not in NATIVE:
        words += ["--model-impl", "transformers"]
    words += [] if model.dtype == "auto" else ["--dtype", model.dtype]
    words += ["--revision", revision] if revision else []
    words += ["--trust-remote-code"] if model.trust_remote_code else []
    return words


def module_command(words: Sequence[str], python: Sequence[str]) -> list[str]:
    """The same command as a module of Python's: the command `vllm` isn't there in every build."""
    return [*python, "-m", "vllm.entrypoints.openai.api_server", "--model", *words[2:]]


def shown(words: list[str]) -> str:
    """The command as one line of a shell."""
    return shlex.join(words)


def _check(repair: RepairData, folder: Path, edits_only: bool) -> None:
    if repair.monitors and not edits_only:
        raise UsageError(
            f"The repair in {folder} has monitors, and vLLM can only be given its edits; leave the "
            "monitors out with --drop monitors, or serve the model by care itself."
        )
    if not any(channel.strength > 0 for channel in repair.channels):
        raise UsageError(f"The repair in {folder} has no channel that edits anything in vLLM.")
    if bad := [c.site for c in repair.channels if c.site.kind not in KINDS]:
        raise UsageError(
            f"The repair in {folder} edits {bad[0]}, and in vLLM only {' and '.join(KINDS)} are "
            "edited; fit a repair there."
        )
