"""Which model, and how it is loaded: part of every command's configuration.

It is plain data, which the command line shows and a manifest stores; torch is imported by `load`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from care.errors import UsageError
from care.models.thoughts import known_tags
from care.runs.settings import UNSAID, Said

if TYPE_CHECKING:
    from care.models.vlm import VLM

Precision = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["8-bit", "4-bit"]

LOADING = ("dtype", "device_map", "revision", "trust_remote_code", "quantize")
"""How a model is loaded, of what everybody may say."""

_LATER = ("quantize", "thoughts")
"""Facts that older manifests don't know, and which stand in one only where they are given."""

EMBEDDED = "embedded"
"""What the model that comes with the package is called."""


@dataclass(frozen=True)
class ModelSpec:
    """A model by name, and how it is loaded."""

    name: Annotated[str | None, Said("model")] = None
    """Name on the Hub or a folder; none, or embedded: the embedded model."""
    dtype: Precision = "auto"
    """Precision of the model."""
    device_map: str | None = None
    """Where the model goes, such as auto or cuda:0."""
    revision: str | None = None
    """Revision of the model."""
    trust_remote_code: bool = False
    """Run the model's own code."""
    quantize: Quantization | None = None
    """Weights of linear layers in 8 or 4 bits, by bitsandbytes; none: as they come."""
    attn_implementation: Annotated[str | None, UNSAID] = None
    """As in transformers; none: what transformers takes."""
    thoughts: tuple[str, ...] = ()
    """Further tags between which the model thinks before it answers, OPEN…CLOSE; <think>…</think>
    and others are known. Repeatable."""

    def __post_init__(self) -> None:
        known_tags(self.thoughts)
        if self.name == EMBEDDED:
            object.__setattr__(self, "name", None)
        names = ("device_map", "revision", "trust_remote_code", "quantize", "attn_implementation")
        if self.name is None and (unused := [name for name in names if getattr(self, name)]):
            raise UsageError(
                f"The embedded model takes no {unused[0]}; leave it out, or name another model."
            )

    @property
    def shown(self) -> str:
        """What it is called in manifests."""
        return self.name or EMBEDDED

    def batch(self, asked: int | None) -> int:
        """Examples that are answered together: as asked for, or what fits most machines."""
        return asked or (64 if self.name is None else 16)

    def answer_length(self, asked: int | None) -> int:
        """Tokens of an answer: as asked for, or what the model needs to come to its point."""
        return asked or (24 if self.name is None else 512)

    def facts(self) -> dict[str, Any]:
        """For a manifest: everything that decides its answers."""
        facts = {name: getattr(self, name) for name in (*LOADING, "thoughts")}
        told = {name: fact for name, fact in facts.items() if fact or name not in _LATER}
        return {"model": self.name} | told

    def load(self) -> VLM:
        """The model. Raises what `VLM.from_pretrained` does."""
        from care.models.vlm import VLM

        if self.name is None:
            vlm = VLM.embedded(self.dtype)
        else:
            vlm = VLM.from_pretrained(
                self.name,
                dtype=self.dtype,
                device_map=self.device_map,
                revision=self.revision,
                quantize=self.quantize,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
            )
        if self.thoughts:
            vlm.thought_tags = known_tags(self.thoughts)
        return vlm
