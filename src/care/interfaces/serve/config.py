"""What is served, to whom, and how much of it: the options of `care serve`.

Every limit has a value that suits one machine and a few people; a request beyond one is refused in
a sentence that names it. Plain data: neither torch nor the packages of the extra are imported here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from care.errors import UsageError
from care.interfaces.requests.hosts import LOCAL
from care.interfaces.requests.limits import RequestLimits
from care.interfaces.serve.keys import BARE_KEYS_FROM, KEYS_FROM, Keys
from care.models.spec import ModelSpec
from care.runs.settings import FILE, MANY, MAX_BATCH, Between, check_bounds

VLLM_OWN = frozenset(
    f"--{name}"
    for name in (
        "model", "additional-config", "logits-processors", "api-key", "host", "port", "uds",
        "root-path", "ssl-keyfile", "ssl-certfile", "config", "enable-log-requests",
    )
)  # fmt: skip
"""Options of vLLM's that a user may not say: what makes it the repair's server, and keeps its word
from others."""


@dataclass(frozen=True, kw_only=True)
class Limits(RequestLimits):
    """What one request may hold, and how many there may be."""

    max_body_bytes: Annotated[int, Between(1, MANY)] = 32 * 2**20
    """Bytes of a request, its pictures included."""
    max_answer_tokens: Annotated[int, Between(1, MAX_BATCH)] = 4096
    """Tokens of an answer that may be asked for."""
    max_waiting: Annotated[int, Between(1, MAX_BATCH)] = 64
    """Requests that are being read, waiting or answered; one more is told to come again later. With
    vLLM or another server they are all under way there at once."""
    requests_per_minute: Annotated[int, Between(1, MANY)] = 600
    """Requests by one key in a minute; without keys, by everybody together."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A model, the repair that it is served under, and to whom."""

    repair: str
    """Folder of a repair (or its name on the Hub), or another defense; it is put on for every
    answer."""
    hold: Annotated[int | None, Between(0, MAX_BATCH)] = None
    """Tokens of a streamed answer that are kept back until a monitor has read them; none: until the
    first reading."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What makes the answers: vllm, started here beside the model that reads them, transformers,
    or auto, vllm where it is installed and can serve this model with this repair."""
    vllm_args: str = ""
    """Further options of vLLM's server, in one text, such as '--max-num-seqs 64'."""
    vllm_log: Path | None = None
    """File for what vLLM says; none: a temporary one, which stays if vLLM fails."""
    upstream: str | None = None
    """Address of another server of the same model, such as vLLM's, up to and with /v1, that makes
    the answers; the model here reads them. Its key is in CARE_UPSTREAM_KEY, and the word by which
    it answers without its repair in CARE_UPSTREAM_OFF."""
    upstream_model: str | None = None
    """What the model is called there; none: the first that it lists."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs keys."""
    port: Annotated[int, Between(0, 65535)] = 8000
    """Port to listen at; 0: any that is free."""
    served_name: str | None = None
    """What requests call the model; none: its name."""
    keys: Annotated[Path | None, FILE] = None
    """File of keys, one a line, of which every request must hold one; more in CARE_API_KEY."""
    bare_keys: Annotated[Path | None, FILE] = None
    """File of keys whose requests may also ask for the bare model; more in CARE_BARE_API_KEY."""
    batch_size: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Requests that transformers answers together, or texts that are read together of what another
    server answers; none: 64 of the embedded model, 16 of others."""
    grace: Annotated[float, Between(0, MANY)] = 60.0
    """Seconds in which answers are finished once the server is told to end."""
    log_contents: bool = False
    """Write what is asked and answered into the log too."""
    limits: Limits = Limits()
    """What one request may hold, and how many there may be."""
    model: ModelSpec = ModelSpec()
    """What is asked."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.repair:
            raise UsageError("--repair is empty; pass the folder of a repair.")
        if self.upstream is not None and self.engine != "auto":
            raise UsageError(
                f"--engine {self.engine} and --upstream both say what makes the answers; leave one "
                "of them out."
            )
        if self.upstream is not None or self.engine == "transformers":
            for option in ("vllm_args", "vllm_log"):
                if getattr(self, option):
                    raise UsageError(
                        f"--{option.replace('_', '-')} is for a vLLM that is started here, and "
                        "none is; leave it out, or take --engine vllm."
                    )
        for word in self.vllm_words:
            if own := _own(word):
                raise UsageError(
                    f"--vllm-args holds {_option(word)}, which vLLM may take for {own}, and that "
                    "`care serve` says itself; leave it out, or write out another option."
                )

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.served_name or self.model.shown

    @property
    def vllm_words(self) -> list[str]:
        """The words of `vllm_args`; UsageError for quotes that don't close."""
        try:
            return shlex.split(self.vllm_args)
        except ValueError as error:
            raise UsageError(
                f"--vllm-args can't be read ({error}); pass it as a shell would be told."
            ) from error

    @property
    def answer_length(self) -> int:
        """Tokens of an answer where a request doesn't say."""
        return min(self.model.answer_length(None), self.limits.max_answer_tokens)

    def known_keys(self) -> Keys:
        """The keys that may ask; UsageError for an address that others reach, without any."""
        keys = Keys.read(self.keys, self.bare_keys)
        if self.host not in LOCAL and not keys:
            raise UsageError(
                f"--host {self.host} can be reached by others, but there are no keys; pass "
                f"--keys FILE or set {KEYS_FROM} (or {BARE_KEYS_FROM}), or leave --host out."
            )
        return keys


def _option(word: str) -> str:
    """An option of vLLM's as it is documented, of a word that may hold its value too, or the name
    of what is set within it (--option.name)."""
    return word.partition("=")[0].partition(".")[0].replace("_", "-")


def _own(word: str) -> str | None:
    """The option of `VLLM_OWN` that a word is, or may be short for."""
    option = _option(word)
    return next(
        (own for own in sorted(VLLM_OWN) if option.startswith("--") and own.startswith(option)),
        None,
    )
