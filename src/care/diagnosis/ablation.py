"""Take away what sites compute, as context managers over `care.models.hooks`.

At the positions in scope the activation h of a site becomes h + s (r − h), where r is what the kind
of ablation puts there and s (1 unless two ablations are matched in norm) how much of it is done.
What may be said after each kind differs: zero lies far off what the model ever sees, a mean keeps
what a site adds to every prompt, the optimal constant is the mildest value that doesn't depend on
the input, and only resampling and pairs put in something that the model really computed
(Heimersheim and Nanda, arXiv 2404.15255; Li and Janson, arXiv 2409.09951).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from care.errors import SiteError, UsageError
from care.models import blocks
from care.models.alignment import align
from care.models.edit_stats import EditStats, SiteStats
from care.models.hooks import Recorder, fitting, hooked, read
from care.models.passes import Pass
from care.models.sites import N_CLASSES, Role, Scope, Site, position_classes, scope_mask
from care.models.vlm import VLM

Ablation = Literal["mean", "zero", "resample", "skip", "constant", "paired", "previous-layer"]

Activations = Mapping[Site, tuple[Tensor, Tensor]]
"""Per site: activations (B, T, D) of a run and the roles (B, T) of its positions."""


@contextmanager
def ablate(
    vlm: VLM,
    sites: Sequence[Site],
    how: Ablation = "mean",
    means: Mapping[Site, Tensor] | None = None,
    scopes: Sequence[Scope] = ("all",),
    donors: Activations | Recorder | None = None,
    scale: float = 1.0,
) -> Iterator[EditStats]:
    """Take away what `sites` compute, at the positions in scope.

    - `zero`: h := 0.
    - `mean`, `constant`: h := means[site], a vector (D,), one per role (4, D) indexed by `Role`, or
      one per position class (5, D). The two differ in where the values come from (averages, or
      `care.diagnosis.optimal_constants.fit_constants`).
    - `resample`: h := activation of another run at a position of the same role. `donors` is a
      `Recorder` or holds (h (B', T', D), roles (B', T')) per site; row b takes from row b mod B'.
      Prompt positions are matched counting from the end of their role, answer positions from its
      start. Without donors each row takes from the row before it in its own batch. A position
      whose donor lacks the role keeps its value. `VLM.generate` orders and drops rows, so which
      donor a row gets there is arbitrary.
    - `paired`: h := activation of the run in `donors` at the position's counterpart
      (`care.models.alignment.align`), row b from row b; positions without one keep their value.
      Whole prompts only, not decode steps.
    - `skip`: layer_out := the layer's input; at `ffn_out` and `mhsa_out` the same as `zero`.
    - `previous-layer`, of CARE's released code and only for parity with it: ffn_out := that of the
      last earlier layer that isn't ablated, in the same pass; mhsa_out := the normed input of the
      attention. The two inject different kinds of noise, so what they do can't be compared.

    With `scale` s the change is s times that, so that its norm can be chosen.

    Yields statistics. Raises SiteError for unknown sites, UsageError for missing means or donors.
    (`skip` is the layer scan of CARE, arXiv 2603.27240.)
    """
    checked = vlm.anatomy.check(sites)
    scope_mask(torch.zeros(1, 1, dtype=torch.long), scopes)
    stats = EditStats({site: SiteStats() for site in checked})
    with ExitStack() as stack:
        replacement = _replacement(vlm, checked, how, means, donors, stack)

        def visit(site: Site, h: Tensor, context: Pass) -> Tensor:
            new = replacement(site, h, context).to(h)
            if scale != 1:
                new = h + scale * (new - h)
            mask = scope_mask(context.roles, scopes)[..., None]
            stream = context.inputs[_layer(vlm, site)] if site.kind != "ffn_neurons" else None
            new = context.reached(h, fitting(site, h, torch.where(mask, new, h)))
            stats[site].add(h, new, context.roles, stream)
            return new

        watched = [_layer(vlm, site) for site in checked]
        if how == "previous-layer":
            watched += [_mixer(vlm, site) for site in checked if site.kind == "mhsa_out"]
        following = how in ("resample", "paired")
        visits = {site: partial(visit, site) for site in checked}
        stack.enter_context(hooked(vlm, visits, following=following, inputs=watched))
        yield stats


def first_needed(sites: Sequence[Site], how: Ablation) -> int:
    """The first layer that has to be computed to ablate `sites`; what comes before is as it was.

    The output of a whole layer is replaced, so that layer isn't needed; the layer that
    `previous-layer` copies from is.
    """
    first = min(site.layer + (site.kind == "layer_out") for site in sites)
    if how == "previous-layer":
        first = min([first, *(source.layer for source in _sources(sites).values())])
    return first


# -- what is put there -----------------------------------------------------------------------------

_Replacement = Callable[[Site, Tensor, Pass], Tensor]


def _replacement(
    vlm: VLM,
    sites: Sequence[Site],
    how: str,
    means: Mapping[Site, Tensor] | None,
    donors: Activations | Recorder | None,
    stack: ExitStack,
) -> _Replacement:
    """What an ablation of this kind writes everywhere; scopes and scale are applied later."""
    if how == "zero":
        return lambda site, h, context: torch.zeros_like(h)
    if how == "skip":
        if any(site.kind == "ffn_neurons" for site in sites):
            raise UsageError("FFN neurons can't be skipped; ablate them with how='zero'.")
        return lambda site, h, context: (
            context.inputs[_layer(vlm, site)] if site.kind == "layer_out" else torch.zeros_like(h)
        )
    if how in ("mean", "constant"):
        table = {site: _values_of(vlm, site, how, means) for site in sites}
        return lambda site, h, context: table[site].to(h.device)[position_classes(context.roles)]
    if how == "previous-layer":
        return _from_previous_layer(vlm, sites, stack)
    given = None if donors is None else {site: donors[site] for site in sites}
    if how == "resample":
        return partial(_resample, given)
    if how == "paired":
        if given is None:
            raise UsageError("Paired ablation needs donors: the activations of the paired run.")
        return partial(_pair, given)
    raise UsageError(f"Ablation {how!r} is unknown; use one of {', '.join(get_args(Ablation))}.")


def _layer(vlm: VLM, site: Site) -> nn.Module:
    return vlm.anatomy.layers[site.layer]


def _mixer(vlm: VLM, site: Site) -> nn.Module:
    return blocks.mixer(_layer(vlm, site))


def _values_of(vlm: VLM, site: Site, how: str, means: Mapping[Site, Tensor] | None) -> Tensor:
    """What is put at `site` per position class (5, D)."""
    if means is None or site not in means:
        raise UsageError(f"{how.capitalize()} ablation needs means[{site}]; none was given.")
    mean, width = means[site], vlm.anatomy.site_width(site)
    if mean.shape == (width,):
        return mean.expand(N_CLASSES, width)
    if mean.shape == (len(Role), width):
        return torch.cat([mean, mean[Role.TEXT, None]])
    if mean.shape == (N_CLASSES, width):
        return mean
    raise UsageError(
        f"means[{site}] has shape {tuple(mean.shape)}; expected ({width},), ({len(Role)}, {width}) "
        f"or ({N_CLASSES}, {width})."
    )


def _sources(sites: Sequence[Site]) -> dict[Site, Site]:
    """For each FFN site the last earlier FFN site that isn't ablated itself."""
    sources = {}
    for site in sites:
        if site.kind in ("layer_out", "ffn_neurons"):
            raise UsageError(
                f"previous-layer is a way to ablate ffn_out and mhsa_out, not {site}; use skip for "
                "whole layers and zero for neurons."
            )
        if site.kind == "ffn_out":
            earlier = [Site(layer, "ffn_out") for layer in range(site.layer)]
            left = [source for source in earlier if source not in sites]
            if not left:
                raise SiteError(
                    f"Site {site} has no earlier FFN to copy from; leave it out of a "
                    "previous-layer scan."
                )
            sources[site] = left[-1]
    return sources


def _from_previous_layer(vlm: VLM, sites: Sequence[Site], stack: ExitStack) -> _Replacement:
    sources = _sources(sites)
    recorder: Recorder | None = None
    if sources:
        recorder = stack.enter_context(read(vlm, sorted(set(sources.values()))))

    def replacement(site: Site, h: Tensor, context: Pass) -> Tensor:
        if site in sources and recorder is not None:
            return recorder[sources[site]][0].to(h.device)
        return context.inputs[_mixer(vlm, site)]

    return replacement


def _pair(donors: Activations, site: Site, h: Tensor, context: Pass) -> Tensor:
    source, roles = (part.to(h.device) for part in donors[site])
    if context.decoding:
        raise UsageError("Paired runs have no counterpart of generated tokens; use resample there.")
    if len(source) != len(h) or source.shape[-1] != h.shape[-1]:
        raise UsageError(
            f"Paired activations at {site} have shape {tuple(source.shape)}, which doesn't fit "
            f"{len(h)} rows of width {h.shape[-1]}."
        )
    index, found = align(context.roles, roles)
    taken = source.gather(1, index[..., None].expand(-1, -1, h.shape[-1]))
    return torch.where(found[..., None], taken.to(h), h)


def _resample(donors: Activations | None, site: Site, h: Tensor, context: Pass) -> Tensor:
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
