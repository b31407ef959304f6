"""What hooks know of a forward pass of the whole model: which positions are a prompt's.

`VLM` says it (`VLM.known_roles`). For other calls it is derived from where a pass stands in its
sequence: after how many cached positions it begins, and where the prompt ends. Caches are looked
for among the arguments of the model and of its first layer, whatever they are called; the end of
the prompt is known while `model.generate` runs (`care.models.generations`). So

- a pass that begins a sequence reads a prompt, up to the prompt's end if that is known,
- one token after a cache is an answer's, and several are what the end of the prompt makes them,
- anything else (several tokens after a cache outside of `generate`, a piece of a prompt, a cache
  that doesn't say how much it holds) is a SiteError at the first site, before anything is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from care.errors import SiteError
from care.models.anatomy import Anatomy
from care.models.caches import cached_positions, caches_in, may_hold_state
from care.models.generations import SAY_ROLES, Generation
from care.models.sites import Role, RoleContext, roles_of_inputs

_NOT_WHOLE = (
    "The roles of the positions are unknown: call the whole model with input_ids, not a part of it "
    "or inputs_embeds."
)


class Pass:
    """What hooks know of the forward pass that is running."""

    def __init__(
        self,
        anatomy: Anatomy,
        context: RoleContext,
        pad_token_id: int,
        running: Callable[[], Generation | None],
        following: bool = False,
    ) -> None:
        """`context` holds roles that are said, `running` tells which call of `generate` runs."""
        self._anatomy, self._context, self._pad = anatomy, context, pad_token_id
        self.completed = 0
        self.answering = False
        """Whether every position is known to be an answer's, or padding."""
        self.unpadded = False
        """Whether no position is padding, as far as is known without looking."""
        self.decoding = False
        """Whether the pass continues from a cache; only if `following`."""
        self.offset: Tensor | int = 0
        """Answer tokens before this pass; only if `following`, which takes time in every pass."""
        self.sent: Tensor | None = None
        """At the neurons of an expert, the positions (B, T) that the router sends there; None
        elsewhere, where it is all of them."""
        self.inputs: dict[nn.Module, Tensor] = {}
        """What the modules that are watched were given in this pass."""
        self._following = following
        self._running = running
        self._next_offset: Tensor | int = 0
        self._prompt_end: int | None = None
        self._roles: Tensor | None = None
        self._unknown = _NOT_WHOLE
        self._look: Any = None

    @property
    def roles(self) -> Tensor:
        """Roles (B, T) of the pass; SiteError if they couldn't be established."""
        if self._roles is None:
            raise SiteError(self._unknown)
        return self._roles

    # -- hooks -------------------------------------------------------------------------------------

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the whole model."""
        self._forget()
        if self._context.explicit is not None:
            self._roles = self._context.explicit
            self.answering = self.unpadded = self._context.answering
            if self._following:
                past = cached_positions(caches_in([*args, *kwargs.values()]))
                self.decoding = bool(past)
                self._count_roles(self._roles)
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            return
        caches = caches_in([*args, *kwargs.values()])
        if caches:
            self._settle(ids, kwargs, caches, cached_positions(caches))
        else:
            self._look_at_first_layer(ids, args, kwargs)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Post-hook of the whole model; called after an error as well, without an output."""
        self.completed += output is not None
        self._forget()

    def keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of a module whose input is needed."""
        self.inputs[module] = args[0] if args else kwargs["hidden_states"]

    def in_rows(self, h: Tensor) -> Tensor:
        """Activations (B·T, ·) as (B, T, ·); SiteError if they don't fit the pass."""
        if h.size(0) != self.roles.numel():
            raise SiteError(
                f"Activations of shape {tuple(h.shape)} don't fit the {tuple(self.roles.shape)} "
                "positions of this pass."
            )
        return h.view(*self.roles.shape, h.size(1))

    def reached(self, h: Tensor, new: Tensor) -> Tensor:
        """`new` (B, T, ·) where it can do anything, h elsewhere."""
        return new if self.sent is None else torch.where(self.sent[..., None], new, h)

    def check(self, h: Tensor) -> None:
        """Verify that h is (B, T, ·) for the roles of the pass, and bring those to its device."""
        roles = self._roles
        if roles is None:
            raise SiteError(self._unknown)
        if h.ndim != 3 or h.size(0) != roles.size(0) or h.size(1) != roles.size(1):
            raise SiteError(
                f"Activations of shape {tuple(h.shape)} don't fit the {tuple(roles.shape)} "
                "positions of this pass."
            )
        if roles.get_device() != h.get_device():  # numbers, which are had faster than devices
            self._roles = roles.to(h.device)

    # -- inside ------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """What holds for one pass doesn't for a part of the model that is run by itself."""
        self._roles, self._unknown = None, _NOT_WHOLE
        self.answering = self.unpadded = self.decoding = False
        self.inputs.clear()
        if self._look is not None:
            self._look.remove()
            self._look = None

    def _look_at_first_layer(
        self, ids: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Settle when the first layer is called, for a model may make or hold a cache itself.

        If there is none either, the positions that the model counts tell where the pass begins.
        """

        def look(layer: nn.Module, some: tuple[Any, ...], more: dict[str, Any]) -> None:
            caches = caches_in([*some, *more.values()])
            counted = (told.get("position_ids") for told in (more, kwargs))
            positions = next((each for each in counted if isinstance(each, Tensor)), None)
            if caches:
                past = cached_positions(caches)
            elif positions is not None and positions.numel():
                past = int(positions.min())
            else:
                past = None if may_hold_state([*args, *kwargs.values()]) else 0
            self._settle(ids, kwargs, caches, past)

        self._look = self._anatomy.layers[0].register_forward_pre_hook(look, with_kwargs=True)

    def _settle(
        self, ids: Tensor, kwargs: dict[str, Any], caches: Sequence[Any], past: int | None
    ) -> None:
        """Establish the roles of a pass over ids (B, T) that begins after `past` positions."""
        generation = self._running()
        mask, pad = kwargs.get("attention_mask"), self._pad
        try:
            if generation is not None and generation.owns(ids, caches):
                past, prompt = generation.advance(ids, caches, past)
                pad = pad if generation.pad is None else generation.pad
                mask = generation.mask_of(ids, mask)
            else:
                past, prompt = self._alone(ids, kwargs, past)
            self._roles = roles_of_inputs(
                ids,
                mask,
                self._anatomy.image_token_id,
                past=past,
                prompt=prompt,
                pad_token_id=pad,
            )
        except SiteError as error:
            self._unknown = str(error)
            return
        self.answering = past >= prompt
        self.decoding = past > 0
        self.offset = max(past - prompt, 0)
        begun = self._context.begun
        if generation is None or begun is None:
            return
        if past == 0 and begun.shape == ids.shape:
            self._roles = begun  # whoever asks has begun the answers
        elif past:
            self.offset += int((begun == Role.RESPONSE).any(dim=0).sum())

    def _alone(self, ids: Tensor, kwargs: dict[str, Any], past: int | None) -> tuple[int, int]:
        """Positions before a pass that is called by itself, and where its prompt ends."""
        length = ids.shape[1]
        if past is None:
            raise SiteError(
                "This pass is given something that an earlier pass left, but not in a form that "
                f"says how many positions it holds, so its roles are unknown: {SAY_ROLES}."
            )
        if past == 0:
            _check_beginning(length, kwargs)
            self._prompt_end = length
            return 0, length
        if length > 1:
            raise SiteError(
                f"This pass reads {length} tokens after {past} cached positions; whether they are "
                f"an answer's or more of the prompt can't be told: {SAY_ROLES}."
            )
        if self._prompt_end is None or self._prompt_end > past:
            self._prompt_end = past  # the prompt was read before hooks were on
        return past, self._prompt_end

    def _count_roles(self, roles: Tensor) -> None:
        """Count answer tokens since the last pass that held a part of the prompts."""
        # Tensors all along: to ask an accelerator is to wait for it.
        asks = ((roles == Role.TEXT) | (roles == Role.IMAGE)).any()
        self.offset = ~asks * self._next_offset
        self._next_offset = self.offset + (roles == Role.RESPONSE).any(dim=0).sum()


def _check_beginning(length: int, kwargs: dict[str, Any]) -> None:
    """SiteError if the model is told of earlier positions that no cache accounts for."""
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    moved = isinstance(positions, Tensor) and positions.numel() and int(positions.min()) > 0
    wider = isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask[:, length:].any())
    if moved or wider:
        told = "its positions begin after 0" if moved else "its attention mask covers more tokens"
        raise SiteError(
            f"No cache holds anything before the {length} tokens of this pass, but {told}, so it "
            f"may continue from something that can't be seen here: {SAY_ROLES}."
        )
