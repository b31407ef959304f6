"""Read, edit and ablate activations at sites, as context managers over plain forward hooks.

They work in prefill and in decode steps, through `VLM` or when the model is called directly (also
by `model.generate`): a pre-hook on the whole model derives every position's role from the token
ids, the attention mask and the cache length, unless `VLM.forward` has set the roles. Contexts
nest: hooks at one site run in the order of entry, so a later one sees the edits of earlier ones.
Everything is removed on leaving, whatever happens inside. Not here: what a good edit is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from care.anatomy import Role, Scope, Site, roles_of_inputs, scope_mask
from care.errors import SiteError, UsageError
from care.vlm import VLM

Edit = Callable[[Tensor, Tensor], Tensor]
"""(h (B, T, D), roles (B, T)) -> edited h (B, T, D); it should leave `Role.PAD` alone."""

Sink = Callable[[Site, Tensor, Tensor], None]
"""Called with (site, h (B, T, D), roles (B, T)) at every pass."""

Ablation = Literal["mean", "zero", "resample", "skip"]


class SiteStats:
    """How much was edited at one site; padding doesn't count."""

    def __init__(self) -> None:
        self.calls = 0
        self._sums: Tensor | None = None

    def add(self, before: Tensor, after: Tensor, roles: Tensor) -> None:
        """Accumulate on the device: number of changed positions and their ‖Δh‖/‖h‖."""
        self.calls += 1
        if after is before:
            return
        with torch.no_grad():
            if after.dtype == torch.float16:  # where the difference may overflow
                after = after.float()
            exact = torch.promote_types(before.dtype, torch.float32)
            length, change = (
                torch.linalg.vector_norm(x.detach(), dim=-1, dtype=exact)
                for x in (before, after - before)
            )
            changed = (change > 0) & (roles != Role.PAD)
            ratio = change / length.clamp_min(torch.finfo(torch.float32).tiny)
            ratios = torch.where(changed, ratio, 0.0)
            sums = torch.stack([changed, ratios]).sum(dim=(1, 2), dtype=torch.float64)
            self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    @property
    def tokens(self) -> int:
        """Number of positions that an edit changed."""
        return 0 if self._sums is None else int(self._sums[0])

    @property
    def relative_norm(self) -> float:
        """Mean of ‖Δh‖/‖h‖ over the changed positions; 0 if there are none."""
        return 0.0 if not self.tokens or self._sums is None else float(self._sums[1]) / self.tokens


class EditStats(dict[Site, SiteStats]):
    """Statistics per site; filled while the context is open, readable afterwards."""

    @property
    def tokens(self) -> int:
        """Number of changed (site, position) pairs."""
        return sum(stats.tokens for stats in self.values())

    @property
    def relative_norm(self) -> float:
        """Mean of ‖Δh‖/‖h‖ over all changed (site, position) pairs."""
        total = sum(stats.relative_norm * stats.tokens for stats in self.values())
        return total / self.tokens if self.tokens else 0.0


class Recorder:
    """Activations of the last forward pass at each site."""

    def __init__(self, sites: Sequence[Site], scopes: Sequence[Scope]) -> None:
        self.sites = list(sites)
        self.scopes = scopes
        self._last: dict[Site, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, site: Site) -> tuple[Tensor, Tensor]:
        """(h (B, T, D), roles (B, T)) of the last pass; h keeps its graph if there was one."""
        if site not in self._last:
            reason = "no forward pass has run" if site in self.sites else "it isn't being read"
            raise SiteError(f"There is no activation at site {site}: {reason}.")
        return self._last[site]

    def rows(self, site: Site, scopes: Sequence[Scope] | None = None) -> Tensor:
        """The activations (n, D) at all positions in scope (that of `read` by default)."""
        h, roles = self[site]
        return h[scope_mask(roles, scopes or self.scopes)]

    def record(self, site: Site, h: Tensor, roles: Tensor) -> None:
        """Replace what is held for `site`."""
        self._last[site] = (h, roles)


@contextmanager
def edit(vlm: VLM, edits: Mapping[Site, Edit]) -> Iterator[EditStats]:
    """Apply `edits` at their sites while the context is open.

    Yields statistics that count what was really changed. Raises SiteError on entry for no sites
    or unknown ones, and from the pass in which an edit returns another shape.
    """
    stats = EditStats({site: SiteStats() for site in vlm.anatomy.check(edits)})

    def visit(site: Site, h: Tensor, context: "_Pass") -> Tensor:
        new = edits[site](h, context.roles)
        return _checked(site, h, new, context.roles, stats[site])

    with _hooked(vlm, list(stats), visit):
        yield stats


@contextmanager
def read(
    vlm: VLM, sites: Sequence[Site], scopes: Sequence[Scope] = ("all",), sink: Sink | None = None
) -> Iterator[Recorder]:
    """Record the activations at `sites` while the context is open.

    Yields a `Recorder` of the last pass; `sink`, if given, sees every pass (decode steps too).
    """
    scope_mask(torch.zeros(1, 1, dtype=torch.long), scopes)  # a wrong scope fails here, not later
    recorder = Recorder(vlm.anatomy.check(sites), scopes)

    def visit(site: Site, h: Tensor, context: "_Pass") -> None:
        recorder.record(site, h, context.roles)
        if sink is not None:
            sink(site, h, context.roles)

    with _hooked(vlm, recorder.sites, visit):
        yield recorder


@contextmanager
def ablate(
    vlm: VLM,
    sites: Sequence[Site],
    how: Ablation = "mean",
    means: Mapping[Site, Tensor] | None = None,
    scopes: Sequence[Scope] = ("all",),
    donors: Mapping[Site, tuple[Tensor, Tensor]] | Recorder | None = None,
) -> Iterator[EditStats]:
    """Take away what `sites` compute, at the positions in scope.

    - `zero`: h := 0.
    - `mean`: h := means[site], a vector (D,) or one per role (4, D), indexed by `Role`.
    - `resample`: h := activation of another run at a position of the same role. `donors` is a
      `Recorder` or holds (h (B', T', D), roles (B', T')) per site; row b takes from row b mod B'.
      Prompt positions are matched counting from the end of their role, answer positions from its
      start. Without donors each row takes from the row before it in its own batch. A position
      whose donor lacks the role keeps its value. `VLM.generate` orders and drops rows, so which
      donor a row gets there is arbitrary.
    - `skip`: layer_out := the layer's input; at `ffn_out` and `mhsa_out` the same as `zero`.

    Yields statistics. Raises SiteError for unknown sites, UsageError for missing means or donors.
    (Heimersheim and Nanda 2024; `skip` is the paper's layer scan.)
    """
    checked = vlm.anatomy.check(sites)
    scope_mask(torch.zeros(1, 1, dtype=torch.long), scopes)
    stats = EditStats({site: SiteStats() for site in checked})
    replacement = _replacement(vlm, checked, how, means, donors)

    def visit(site: Site, h: Tensor, context: "_Pass") -> Tensor:
        new = replacement(site, h, context)
        mask = scope_mask(context.roles, scopes)[..., None]
        return _checked(site, h, torch.where(mask, new.to(h), h), context.roles, stats[site])

    with _hooked(vlm, checked, visit):
        yield stats


# -- the passes ------------------------------------------------------------------------------------


class _Pass:
    """What hooks know of the forward pass that is running."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self.completed = 0
        self.decoding = False
        """Whether the pass continues from a cache."""
        self.offset: Tensor | int = 0
        """Answer tokens before this pass, since the last one that held a part of the prompts."""
        self._next_offset: Tensor | int = 0
        self.layer_input: dict[int, Tensor] = {}
        self._roles: Tensor | None = None

    @property
    def roles(self) -> Tensor:
        """Roles (B, T) of the pass."""
        if self._roles is None:
            raise SiteError(
                "The roles of the positions are unknown: call the whole model with input_ids, not "
                "a part of it or inputs_embeds."
            )
        return self._roles

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the whole model."""
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.vlm.explicit_roles is not None:
            self._roles = self.vlm.explicit_roles
        elif isinstance(ids, Tensor):
            self._roles = roles_of_inputs(
                ids,
                kwargs.get("attention_mask"),
                self.vlm.anatomy.image_token_id,
                past=past,
                pad_token_id=self.vlm.tokenizer.pad_token_id,
            )
        else:
            self._roles = None
        self.decoding = past > 0
        if self._roles is not None:  # tensors all along: to ask an accelerator is to wait for it
            asks = ((self._roles == Role.TEXT) | (self._roles == Role.IMAGE)).any()
            self.offset = ~asks * self._next_offset
            self._next_offset = self.offset + (self._roles == Role.RESPONSE).any(dim=0).sum()

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Post-hook of the whole model."""
        self.completed += 1
        self.layer_input.clear()

    def keep_input(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Pre-hook of one layer."""
        self.layer_input[layer] = args[0] if args else kwargs["hidden_states"]

    def at(self, h: Tensor) -> Tensor:
        """Verify that h is (B, T, ·) for the roles of the pass, and bring those to its device."""
        roles = self.roles
        if h.ndim != 3 or h.shape[:2] != roles.shape:
            raise SiteError(
                f"Activations of shape {tuple(h.shape)} don't fit the {tuple(roles.shape)} "
                "positions of this pass."
            )
        self._roles = roles.to(h.device)
        return self._roles


Visit = Callable[[Site, Tensor, _Pass], Tensor | None]


@contextmanager
def _hooked(vlm: VLM, sites: Sequence[Site], visit: Visit) -> Iterator[None]:
    """Call `visit` at each site in every pass; a tensor that it returns replaces the activation."""
    context = _Pass(vlm)
    calls = dict.fromkeys(sites, 0)

    def counted(site: Site, h: Tensor) -> Tensor | None:
        context.at(h)
        calls[site] += 1
        return visit(site, h, context)

    with ExitStack() as stack:

        def keep(handle: Any) -> None:
            stack.callback(handle.remove)

        keep(vlm.model.register_forward_pre_hook(context.begin, with_kwargs=True))
        keep(vlm.model.register_forward_hook(context.end))
        for site in calls:
            module = vlm.anatomy.module(site)
            if site.kind == "layer_out":
                remember = partial(context.keep_input, site.layer)
                keep(module.register_forward_pre_hook(remember, with_kwargs=True))
            if site.kind == "ffn_neurons":
                keep(module.register_forward_pre_hook(_input_hook(partial(counted, site))))
            else:
                keep(module.register_forward_hook(_output_hook(partial(counted, site))))
        yield
    silent = [str(site) for site, count in calls.items() if not count]
    if context.completed and silent:
        raise SiteError(
            f"The model ran without ever passing through {', '.join(silent)}; nothing was read or "
            "edited there."
        )


def _output_hook(visit: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    """Forward hook on a module that returns a tensor or a tuple that starts with one."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            new = visit(output[0])
            return None if new is None else (new, *output[1:])
        return visit(output)

    return hook


def _input_hook(visit: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    """Pre-hook on a linear layer, whose only argument is the activation."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = visit(args[0])
        return None if new is None else (new, *args[1:])

    return hook


def _checked(site: Site, h: Tensor, new: Any, roles: Tensor, stats: SiteStats) -> Tensor:
    if not isinstance(new, Tensor) or new.shape != h.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise SiteError(f"The edit at {site} returned {got} for activations {tuple(h.shape)}.")
    new = new.to(h)
    stats.add(h, new, roles)
    return new


# -- ablations -------------------------------------------------------------------------------------

_Replacement = Callable[[Site, Tensor, _Pass], Tensor]


def _replacement(
    vlm: VLM,
    sites: Sequence[Site],
    how: str,
    means: Mapping[Site, Tensor] | None,
    donors: Mapping[Site, tuple[Tensor, Tensor]] | Recorder | None,
) -> _Replacement:
    """What an ablation of this kind writes everywhere; scopes are applied later."""
    if how == "zero":
        return lambda site, h, context: torch.zeros_like(h)
    if how == "skip":
        if any(site.kind == "ffn_neurons" for site in sites):
            raise UsageError("FFN neurons can't be skipped; ablate them with how='zero'.")
        return lambda site, h, context: (
            context.layer_input[site.layer] if site.kind == "layer_out" else torch.zeros_like(h)
        )
    if how == "mean":
        table = {site: _mean_of(vlm, site, means) for site in sites}
        return lambda site, h, context: table[site].to(h.device)[context.roles]
    if how == "resample":
        given = None if donors is None else {site: donors[site] for site in sites}
        return partial(_resample, given)
    raise UsageError(f"Ablation {how!r} is unknown; use mean, zero, resample or skip.")


def _mean_of(vlm: VLM, site: Site, means: Mapping[Site, Tensor] | None) -> Tensor:
    """The mean at `site` per role (4, D)."""
    if means is None or site not in means:
        raise UsageError(f"Mean ablation needs means[{site}]; none was given.")
    mean, width = means[site], vlm.anatomy.site_width(site)
    if mean.shape == (width,):
        return mean.expand(len(Role), width)
    if mean.shape == (len(Role), width):
        return mean
    raise UsageError(
        f"means[{site}] has shape {tuple(mean.shape)}; expected ({width},) or "
        f"({len(Role)}, {width})."
    )


def _resample(
    donors: Mapping[Site, tuple[Tensor, Tensor]] | None, site: Site, h: Tensor, context: _Pass
) -> Tensor:
    if donors is None:
        if len(h) == 1 and not context.decoding:
            raise UsageError(
                "A batch of one has no other row to resample from; pass donors or more examples."
            )
        source, source_roles = h.roll(1, dims=0), context.roles.roll(1, dims=0)
        offset = 0
    else:
        source, source_roles = (part.to(h.device) for part in donors[site])
        if source.shape[-1] != h.shape[-1]:
            raise UsageError(f"Donors at {site} have width {source.shape[-1]}, not {h.shape[-1]}.")
        rows = torch.arange(len(h), device=h.device) % len(source)
        source, source_roles = source[rows], source_roles[rows]
        offset = context.offset
    new = h
    for role in (Role.TEXT, Role.IMAGE, Role.RESPONSE):
        backwards = role != Role.RESPONSE
        index, found = _aligned(
            context.roles == role, source_roles == role, backwards, 0 if backwards else offset
        )
        taken = source.gather(1, index[..., None].expand(-1, -1, h.shape[-1]))
        new = torch.where(found[..., None], taken.to(h), new)
    return new


def _aligned(
    here: Tensor, there: Tensor, backwards: bool, offset: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Match the i-th true of each row of `here` (B, T) with the i-th true of `there` (B, S).

    Counts from the end if `backwards`, adds `offset` to i, and wraps around if `there` has fewer.
    Returns indices into S (B, T) and a mask (B, T) of the positions that have a match.
    """
    if backwards:
        index, found = _aligned(here.flip(1), there.flip(1), False, offset)
        return there.shape[1] - 1 - index.flip(1), found.flip(1)
    rank = here.long().cumsum(1) - 1 + offset
    count = there.sum(1, keepdim=True)
    positions = (~there).int().argsort(dim=1, stable=True)  # the trues first, in order
    index = positions.gather(1, rank.clamp_min(0) % count.clamp_min(1))
    return index, here & (count > 0)
