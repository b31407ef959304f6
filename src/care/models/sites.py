"""Where activations are read or edited, and what the positions of a pass are.

A *site* is (layer index, kind). The kinds are defined by what is added to the residual stream:

    h_mid = h_in + mhsa_out,    layer_out = h_mid + ffn_out,    ffn_out = W_down · ffn_neurons

An FFN of experts has such a site for each of them, and a neuron is (layer, expert, neuron). Its
value is 0 where the router doesn't send a token, and an edit there does nothing.

A *role* says whether a position is padding, text, image or answer, a *scope* which positions are
meant. Averages differ by *position class*: the tokens of a role, with the decision (the last
position of a prompt) as a class of its own, because what is computed there is unlike that at other
tokens. Video tokens are not told apart: they count as text. Where a site is inside a model is found
by `care.models.anatomy`.

Results and configurations name sites and scopes, so torch is imported late here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Literal, get_args

from care.errors import SiteError

if TYPE_CHECKING:
    from torch import Tensor

SiteKind = Literal["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"]
Scope = Literal["image", "text", "decision", "response", "all"]


class Role(IntEnum):
    """Role of one token position; the numbers index per-role statistics of shape (4, D)."""

    PAD = 0
    TEXT = 1
    IMAGE = 2
    RESPONSE = 3


_SCOPE_ROLES: dict[str, Role] = {
    "image": Role.IMAGE,
    "text": Role.TEXT,
    "response": Role.RESPONSE,
}


@dataclass(frozen=True, order=True)
class Site:
    """A place where activations are read or edited; `str(Site(16, "ffn_out")) == "16.ffn_out"`."""

    layer: int
    """Zero-based index of the decoder layer."""

    kind: SiteKind
    """`ffn_out`, `mhsa_out`, `layer_out` (width D) or `ffn_neurons` (width F)."""

    expert: int | None = None
    """Of an FFN of experts, whose neurons; a shared expert comes after those that are chosen."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(SiteKind):
            raise SiteError(
                f"Site kind {self.kind!r} is unknown; use one of {', '.join(get_args(SiteKind))}."
            )
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise SiteError(
                f"Layer {self.layer!r} is not a layer index; layers count from 0 upwards."
            )
        if self.expert is not None and (self.kind != "ffn_neurons" or self.expert < 0):
            raise SiteError(
                f"{self.kind} has no expert {self.expert}; only ffn_neurons are told by expert, "
                "which count from 0 upwards."
            )

    def __str__(self) -> str:
        return ".".join(
            str(part) for part in (self.layer, self.kind, self.expert) if part is not None
        )

    @classmethod
    def parse(cls, text: str) -> Site:
        """Inverse of `str`: `Site.parse("16.ffn_out")`; SiteError if the text has another form."""
        layer, dot, kind = str(text).strip().partition(".")
        kind, dotted, expert = kind.partition(".")
        numbers = (layer, expert) if dotted else (layer,)
        if not dot or not all(part.isascii() and part.isdigit() for part in numbers):
            raise SiteError(f"{text!r} is not a site; write LAYER.KIND, for example 16.ffn_out.")
        which = int(expert) if dotted else None
        return cls(int(layer), kind, which)  # pyright: ignore[reportArgumentType]  checked there


Neuron = tuple[int, ...]
"""(layer, neuron), or (layer, expert, neuron) where the FFN is one of experts."""


def neuron_site(neuron: Neuron) -> Site:
    """The site at which a neuron is one of the columns, its last number."""
    layer, *expert, _ = neuron
    return Site(layer, "ffn_neurons", *expert)


class RoleContext:
    """The roles that hooks take for the positions of a pass, while somebody says them."""

    def __init__(self) -> None:
        self.explicit: Tensor | None = None
        """Roles (B, T) of the pass; None: hooks derive them from its inputs."""
        self.answering = False
        """Whether all of them are said to be `Role.RESPONSE`."""
        self.begun: Tensor | None = None
        """Roles (B, T) of what `model.generate` is given, where that ends in begun answers."""

    @contextmanager
    def known(self, roles: Tensor | None, *, answering: bool = False) -> Iterator[None]:
        """While open, hooks take these roles (B, T) instead of deriving them from the inputs.

        `answering` states that all of them are `Role.RESPONSE`, so that nobody has to look.
        """
        before = self.explicit, self.answering
        self.explicit, self.answering = roles, answering
        try:
            yield
        finally:
            self.explicit, self.answering = before

    @contextmanager
    def begun_by(self, roles: Tensor) -> Iterator[None]:
        """While open, calls of `model.generate` are given positions of these roles (B, T)."""
        before, self.begun = self.begun, roles if bool((roles == Role.RESPONSE).any()) else None
        try:
            yield
        finally:
            self.begun = before


def scope_mask(roles: Tensor, scopes: Sequence[Scope]) -> Tensor:
    """Boolean mask (B, T) of the positions in `scopes`.

    "all" is all but padding; "decision" is the last position of a prompt, where the first answer
    token is decided ("text" includes it). `roles` must reach the end of the prompt, for roles of a
    piece of one don't tell that more of it follows.

    Raises SiteError for an empty list or an unknown scope.
    """
    if isinstance(scopes, str):
        scopes = (scopes,)  # pyright: ignore[reportAssignmentType]  a forgiving call
    unknown = [scope for scope in scopes if scope not in get_args(Scope)]
    if unknown or not scopes:
        given = repr(unknown[0]) if unknown else "none"
        raise SiteError(f"Scope {given} is unknown; use some of {', '.join(get_args(Scope))}.")
    if "all" in scopes:
        return roles != Role.PAD
    masks = (
        _decisions(roles) if scope == "decision" else roles == _SCOPE_ROLES[scope]
        for scope in scopes
    )
    return reduce(or_, masks)


def reaches_answers(scopes: Sequence[Scope]) -> bool:
    """Whether `scopes` hold tokens of answers; if not, a decode step has nothing in scope."""
    return not {"response", "all"}.isdisjoint(scopes)


def _decisions(roles: Tensor) -> Tensor:
    """Mask (B, T) of each row's last position before its answer; none in a decode step."""
    length = roles.shape[1]
    prompt = (roles == Role.TEXT) | (roles == Role.IMAGE)
    last = length - 1 - prompt.flip(1).int().argmax(1)
    places = roles.new_ones(length).cumsum(0) - 1
    return (places == last[:, None]) & prompt


DECISION = len(Role)
"""Position class of the last position of a prompt; the other classes are those of `Role`."""

N_CLASSES = len(Role) + 1
"""Rows of a table of averages: `Role` and `DECISION`."""


def position_classes(roles: Tensor) -> Tensor:
    """Class (B, T) of every position: its role, or `DECISION`."""
    return roles.masked_fill(scope_mask(roles, ("decision",)), DECISION)


def roles_of_inputs(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int | None,
    *,
    past: int = 0,
    prompt: int | None = None,
    pad_token_id: int | None = None,
) -> Tensor:
    """Roles (B, T) of one forward pass, from what the model is given.

    `input_ids` (B, T) are the tokens of this pass, `past` the number of positions before it, and
    the first `prompt` positions of the sequence are the prompt's; by default all of a pass that
    begins one, and none of a pass that continues one. The rest is RESPONSE, and there the padding
    that `generate` feeds to finished rows is PAD. Without a 2-D mask, leading padding tokens are
    PAD. Raises SiteError for a mask that doesn't reach over the pass.
    """
    from torch import Tensor

    length = input_ids.shape[1]
    if prompt is None:
        prompt = past if past else length
    asked = max(min(prompt - past, length), 0)
    roles = input_ids.new_full(input_ids.shape, int(Role.TEXT if asked else Role.RESPONSE))
    if asked:
        if image_token_id is not None:
            roles[input_ids == image_token_id] = int(Role.IMAGE)
        roles[:, asked:] = int(Role.RESPONSE)
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        here = _mask_of_pass(attention_mask, past, length).to(input_ids.device)
        roles = roles.masked_fill(here == 0, int(Role.PAD))
    elif attention_mask is not None and pad_token_id is not None and asked:
        leading = (input_ids == pad_token_id).long().cumprod(dim=1).bool()
        roles = roles.masked_fill(leading, int(Role.PAD))
    if asked < length and pad_token_id is not None:
        finished = (roles == Role.RESPONSE) & (input_ids == pad_token_id)
        roles = roles.masked_fill(finished, int(Role.PAD))
    return roles


def _mask_of_pass(attention_mask: Tensor, past: int, length: int) -> Tensor:
    """Columns of a mask (B, ·) over `length` positions after `past` others.

    It may go on, over what a cache of fixed size doesn't hold yet.
    """
    if attention_mask.shape[1] < length:
        raise SiteError(
            f"The attention mask has {attention_mask.shape[1]} columns for a pass over {length} "
            "tokens; pass one that covers all tokens."
        )
    if attention_mask.shape[1] >= past + length:
        return attention_mask[:, past : past + length]
    return attention_mask[:, -length:]
