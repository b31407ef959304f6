"""Read and edit activations at sites, as context managers over plain forward hooks.

They work in prefill and in decode steps, through `VLM` or when the model is called directly (also
by `model.generate`): what the positions of a pass are is established before the first site
(`care.models.passes`), or nothing is read or edited in it. Contexts nest: hooks at one site run in
the order of entry, so a later one sees the edits of earlier ones. Everything is removed on leaving,
whatever happens inside. Not here: ablations (`care.diagnosis.ablation`).
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from care.errors import SiteError
from care.models.edit_stats import EditStats, SiteStats
from care.models.experts import At, reaching
from care.models.generations import watched
from care.models.passes import Pass
from care.models.sites import Scope, Site, scope_mask
from care.models.vlm import VLM

Edit = Callable[[Tensor, Tensor], Tensor]
"""(h (B, T, D), roles (B, T)) -> edited h (B, T, D); it should leave `Role.PAD` alone."""

Sink = Callable[[Site, Tensor, Tensor], None]
"""Called with (site, h (B, T, D), roles (B, T)) at every pass."""

Visit = Callable[[Tensor, Pass], Tensor | None]
"""(h (B, T, D) at one site, pass) -> what takes the place of h; None leaves it as it is."""


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


def edit(vlm: VLM, edits: Mapping[Site, Edit]) -> AbstractContextManager[EditStats]:
    """Apply `edits` at their sites while the context is open.

    Yields statistics that count what was really changed, for as long as somebody holds them: `with
    edit(…):` alone counts nothing and costs less. Raises SiteError on entry for no sites or unknown
    ones, and from the pass in which an edit returns another shape.
    """

    def checked(site: Site, h: Tensor, context: Pass) -> Tensor:
        return fitting(site, h, edits[site](h, context.roles))

    return edited(vlm, {site: partial(checked, site) for site in edits})


@contextmanager
def edited(vlm: VLM, edits: Mapping[Site, Callable[[Tensor, Pass], Tensor]]) -> Iterator[EditStats]:
    """`edit` for edits (h, pass) -> h' that need more of a pass than its roles.

    They return what is in shape, type and device like h, or h itself if there is nothing to do.
    """
    sites = vlm.anatomy.check(edits)
    given = [EditStats({site: SiteStats() for site in sites})]
    if vlm.edit_counts is not None:
        vlm.edit_counts.append(given[0])
    # Weakly, and nowhere else: to keep what was edited for nobody is a third of what an edit costs.
    asked = weakref.ref(given[0])

    def counted(site: Site) -> Visit:
        change = edits[site]

        def visit(h: Tensor, context: Pass) -> Tensor:
            new = context.reached(h, change(h, context))
            if (stats := asked()) is not None:
                stats[site].add(h, new, context.roles)
            return new

        return visit

    with hooked(vlm, {site: counted(site) for site in sites}):
        yield given.pop()


@contextmanager
def counted(vlm: VLM) -> Iterator[list[EditStats]]:
    """Statistics of every edit that begins while the context is open, whoever makes it, in order.

    For who asks a defense that edits when it sees fit: a monitored repair does so after an alarm.
    """
    before, found = vlm.edit_counts, []
    vlm.edit_counts = found
    try:
        yield found
    finally:
        vlm.edit_counts = before


@contextmanager
def read(
    vlm: VLM, sites: Sequence[Site], scopes: Sequence[Scope] = ("all",), sink: Sink | None = None
) -> Iterator[Recorder]:
    """Record the activations at `sites` while the context is open.

    Yields a `Recorder` of the last pass; `sink`, if given, sees every pass (decode steps too).
    """
    scope_mask(torch.zeros(1, 1, dtype=torch.long), scopes)  # a wrong scope fails here, not later
    recorder = Recorder(vlm.anatomy.check(sites), scopes)

    def see(site: Site, h: Tensor, context: Pass) -> None:
        recorder.record(site, h, context.roles)
        if sink is not None:
            sink(site, h, context.roles)

    with hooked(vlm, {site: partial(see, site) for site in recorder.sites}):
        yield recorder


# -- hooks ------------------------------------------------------------------------------------


@contextmanager
def hooked(
    vlm: VLM,
    visits: Mapping[Site, Visit],
    *,
    following: bool = False,
    inputs: Iterable[nn.Module] = (),
) -> Iterator[None]:
    """Call what is to visit each site in every pass; a tensor that it returns replaces h.

    The pass that it is given holds what the modules `inputs` were called with and, if `following`,
    how much of an answer is before it. Raises SiteError on entry for a compiled model, and on
    leaving if a site was never reached.
    """
    check_interpreted(vlm.model)
    reached: set[int] = set()
    with ExitStack() as stack:
        running = stack.enter_context(watched(vlm.model))
        pad = vlm.tokenizer.pad_token_id
        context = Pass(vlm.anatomy, vlm.roles, pad, running, following)

        def keep(handle: Any) -> None:
            stack.callback(handle.remove)

        def at(place: int, visit: Visit) -> Callable[[Tensor], Tensor | None]:
            def at_site(h: Tensor) -> Tensor | None:
                if h.ndim == 2:  # some families compute FFNs on all positions in one row
                    new = at_site(context.in_rows(h))
                    return None if new is None else new.reshape(h.shape)
                context.check(h)
                reached.add(place)
                return visit(h, context)

            return at_site

        keep(vlm.model.register_forward_pre_hook(context.begin, with_kwargs=True))
        keep(vlm.model.register_forward_hook(context.end, always_call=True))
        for module in dict.fromkeys(inputs):
            keep(module.register_forward_pre_hook(context.keep_input, with_kwargs=True))
        chosen: dict[nn.Module, dict[int, At]] = {}
        for place, (site, visit) in enumerate(visits.items()):
            module, at_site = vlm.anatomy.module(site), at(place, visit)
            if (routed := vlm.anatomy.routed(site)) is not None:
                own = chosen.setdefault(routed[0], {})
                own[routed[1]] = _expert_hook(at_site, context)
            elif site.kind == "ffn_neurons":
                keep(module.register_forward_pre_hook(_input_hook(at_site)))
            else:
                keep(module.register_forward_hook(_output_hook(at_site)))
        for module, each in chosen.items():
            stack.enter_context(reaching(module, each))
        yield
    silent = [str(site) for place, site in enumerate(visits) if place not in reached]
    if context.completed and silent:
        raise SiteError(
            f"The model ran without ever passing through {', '.join(silent)}; nothing was read or "
            "edited there."
        )


def check_interpreted(model: nn.Module) -> None:
    """SiteError if any part went through `torch.compile`.

    What was compiled before a hook was there runs without it: all of the model, or some layers.
    """
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if (
            getattr(module, "_compiled_call_impl", None) is not None
            or "_orig_mod" in module._modules
            or hasattr(forward, "_torchdynamo_orig_callable")
        ):
            raise SiteError(
                f"{name or type(module).__name__} went through torch.compile, and compiled code "
                "passes over hooks; pass the model as it was before, or fold the repair into its "
                "weights (care export --format merged) and compile that."
            )


def _expert_hook(visit: Callable[[Tensor], Tensor | None], context: Pass) -> At:
    """What visits the neurons (n, F) of an expert, and knows which tokens (n,) it is sent."""

    def hook(neurons: Tensor, sent: Tensor) -> Tensor | None:
        context.sent = context.in_rows(sent[:, None])[..., 0]
        try:
            return visit(neurons)
        finally:
            context.sent = None

    return hook


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


def fitting(site: Site, h: Tensor, new: Any) -> Tensor:
    """`new` in the type of h; SiteError if it doesn't have the shape of h."""
    if not isinstance(new, Tensor) or new.shape != h.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise SiteError(f"The edit at {site} returned {got} for activations {tuple(h.shape)}.")
    return new.to(h)
