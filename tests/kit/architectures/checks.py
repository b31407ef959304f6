"""What is tried on every family: one function a column, and to add one is to add it to `CHECKS`.

A check returns nothing where all is well. Where it can't be, the package refuses in a sentence of
`care.errors`; anything else that goes wrong is a failure.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from care.attacks.preprocessing import PixelPath
from care.defenses.folded_weights import unfoldable
from care.defenses.monitors.choosing import fit_monitors
from care.defenses.monitors.fitting import MonitorConfig
from care.defenses.repair.repair import Repair
from care.diagnosis.ablation import ablate
from care.errors import UsageError
from care.models.gradients import differentiable
from care.models.hooks import read
from care.models.sites import Role, Scope, Site
from kit import tiny
from kit.architectures.case import (
    STEPS,
    Case,
    Untried,
    Upstream,
    entering,
    generated,
    keeping,
    output_of,
    roles_of_passes,
    sound,
    two_kinds,
)
from kit.experts import check_experts
from kit.merging import check_folded

SMALL = MonitorConfig(kinds=("ffn_out", "layer_out"), depths=(0.7,), false_alarms=0.1)
KINDS = ("mhsa_out", "ffn_out", "layer_out")


# -- what is read ----------------------------------------------------------------------------------


def sites(case: Case) -> None:
    """At every layer, output − input = c · (mhsa_out + ffn_out) + what else it adds."""
    anatomy = case.vlm.anatomy
    places = [site for kind in KINDS for site in anatomy.sites(kind)]
    entered: dict[int, Tensor] = {}
    more: dict[int, list[Tensor]] = {}
    with ExitStack() as stack:
        for index, layer in enumerate(anatomy.layers):
            stack.callback(
                layer.register_forward_pre_hook(keeping(entered, index), with_kwargs=True).remove
            )
            for name in case.adds:
                part = layer.get_submodule(name)
                kept = more.setdefault(index, [])
                stack.callback(
                    part.register_forward_hook(lambda m, a, h, k=kept: k.append(h)).remove
                )
        recorder = stack.enter_context(read(case.vlm, places))
        case.vlm.forward(case.batch)
    real = case.batch.roles != Role.PAD
    for index in range(anatomy.n_layers):
        mhsa, ffn, out = (recorder[Site(index, kind)][0][real] for kind in KINDS)
        added = out - entered[index][real]
        extra = sum((part[real] for part in more.get(index, [])), torch.zeros_like(added))
        parts = mhsa + ffn
        factor = ((added - extra) * parts).sum() / parts.square().sum()
        torch.testing.assert_close(added, factor * parts + extra, rtol=1e-3, atol=1e-3)


def neurons(case: Case) -> None:
    """What the neurons are gives what the FFN's last map writes; of experts, `check_experts`."""
    vlm = case.vlm
    table = vlm.anatomy.neurons
    for layer, experts in enumerate(table.experts):
        sites = [site for site in table.columns if site.layer == layer]
        if experts:
            check_experts(vlm, case.batch, layer, sites)
            continue
        down = vlm.anatomy.module(sites[0])
        with output_of(down) as written, read(vlm, sites) as recorder:
            vlm.forward(case.batch)
        torch.testing.assert_close(
            down(recorder[sites[0]][0]).reshape(written[0].shape), written[0], rtol=1e-4, atol=1e-4
        )


def mask(case: Case) -> None:
    """Another picture changes what enters the first layer at image positions, and only there."""
    case.need_pictures()
    vlm = case.vlm
    others = [
        replace(example, images=(tiny.picture(n + 50),)) for n, example in enumerate(case.pictured)
    ]
    entered: list[Tensor] = []
    with entering(vlm.anatomy.layers[0], entered):
        logits = [vlm.forward(batch) for batch in (case.batch, vlm.batch(others))]
    assert not torch.allclose(logits[0][:, -1], logits[1][:, -1])
    images = case.batch.roles == Role.IMAGE
    assert images.any(dim=1).all()
    if not case.apart:
        changed = (entered[0] != entered[1]).any(dim=-1)
        assert not (changed & ~images).any()
        # Rows of patches may end in a token that is the same for all pictures (LLaVA-NeXT).
        assert 2 * int(changed.sum()) > int(images.sum())


def decode(case: Case, **options: Any) -> None:
    """While an answer is made its tokens are an answer's."""
    first, *steps = roles_of_passes(case.vlm, lambda: generated(case.vlm, case.batch, **options))
    rows = case.batch.roles.repeat_interleave(len(first) // len(case.batch), dim=0)
    assert torch.equal(first, rows)
    assert steps and all((roles == Role.RESPONSE).all() for roles in steps)


def beams(case: Case) -> None:
    """The same with two beams, which are rows of their own."""
    try:
        generated(case.vlm, case.batch, num_beams=2)
    except Exception as error:
        raise Upstream(str(error)) from error
    decode(case, num_beams=2)


def padding(case: Case) -> None:
    """A prompt has the same logits and answers alone as beside longer ones."""
    vlm = case.vlm
    for examples in (case.pictured, case.plain):
        together = vlm.forward(vlm.batch(examples))[:, -1]
        for row, example in enumerate(examples):
            alone = vlm.forward(vlm.batch(example))[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)
    answers = vlm.generate(case.pictured, max_new_tokens=STEPS)
    assert answers == [vlm.generate(e, max_new_tokens=STEPS)[0] for e in case.pictured]


def likelihood(case: Case) -> None:
    """An answer that is appended changes nothing before it."""
    vlm = case.vlm
    for examples in (case.pictured, case.plain):
        answers = [" you build it", " a house", " so"]
        whole = vlm.forward(vlm.batch(examples, answers))
        bare = vlm.forward(vlm.batch(examples))[:, -1]
        for row, answer in enumerate(answers):
            before = whole[row, -len(vlm.response_ids(answer)) - 1]
            torch.testing.assert_close(before, bare[row], rtol=1e-3, atol=1e-3)
    assert vlm.score(case.pictured, [" a house"] * 3).logprob.all()


def mixed(case: Case) -> None:
    """Requests with and without pictures go into one batch."""
    case.need_pictures()
    vlm, examples = case.vlm, [case.pictured[0], case.plain[1]]
    together = vlm.forward(vlm.batch(examples))[:, -1]
    for row, example in enumerate(examples):
        alone = vlm.forward(vlm.batch(example))[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)


# -- what is changed -------------------------------------------------------------------------------


def ablation(case: Case) -> None:
    """What a site computes is taken away at image positions alone, and that is felt."""
    vlm, clean = case.vlm, case.vlm.forward(case.batch)
    scope, role = case.inside
    images = case.batch.roles == role
    others = ~images & (case.batch.roles != Role.PAD)
    for kind in KINDS:
        site = Site(case.last - 1, kind)
        with ablate(vlm, [site], "zero", scopes=(scope,)) as stats, read(vlm, [site]) as after:
            changed = vlm.forward(case.batch)
        assert stats[site].tokens == int(images.sum())
        assert not after[site][0][images].any()
        assert not others.any() or after[site][0][others].any()
        assert not torch.equal(changed, clean)
        with ablate(vlm, [site], "zero"):
            assert not torch.equal(vlm.forward(case.batch), clean)


def attribution(case: Case) -> None:
    """Attributed tokens, and subspaces of them: the printed formulas."""
    sound(case.fitter("paper").repair([Site(case.last - 1, "ffn_out")]))


def fit(case: Case) -> None:
    """A repair of both modalities."""
    repair = case.fitter("corrected").repair([Site(case.last - 1, "layer_out")])
    found = {channel.modality for channel in repair.channels}
    assert found == ({"image", "text"} if case.vlm.sees else {"text"})
    sound(repair)


def application(case: Case) -> None:
    """Edits act in every pass of an answer, at exactly the positions in scope."""
    vlm = case.vlm
    inside, role = case.inside
    counts: dict[Scope, int] = {"decision": 3, inside: int((case.batch.roles == role).sum())}
    for scope, count in counts.items():
        with case.repair(scope).applied(vlm) as stats:
            edited = vlm.forward(case.batch)
        assert stats[Site(case.last, "layer_out")].tokens == count
        assert not torch.equal(edited, vlm.forward(case.batch))
    with case.repair("response").applied(vlm) as stats:
        generated(vlm, case.batch)
    assert stats[Site(case.last, "layer_out")].tokens == 3 * (STEPS - 1)


def strength(case: Case) -> None:
    """A repair of strength 0 changes no bit."""
    vlm, bare = case.vlm, case.vlm.forward(case.batch)
    said = vlm.generate(case.pictured, max_new_tokens=STEPS)
    with case.repair("all", strength=0.0).applied(vlm):
        assert torch.equal(vlm.forward(case.batch), bare)
        assert vlm.generate(case.pictured, max_new_tokens=STEPS) == said
    assert torch.equal(vlm.forward(case.batch), bare)


def monitors(case: Case) -> None:
    """Monitors of requests and answers are fitted, and read what is asked beside a picture."""
    found = fit_monitors(case.vlm, two_kinds(), (), SMALL)
    repair = replace(case.repair("decision"), monitors=found.monitors)
    answers = list(repair.answer(case.vlm, case.pictured, max_new_tokens=STEPS))
    assert len(answers) == len(case.pictured) and found.monitors


def files(case: Case) -> None:
    """A repair that was saved does the same, on this model."""
    vlm, repair = case.vlm, case.repair("all")
    loaded = Repair.load(repair.save(case.folder / "repair"), vlm)
    assert loaded.digest() == repair.digest()
    found = []
    for one in (repair, loaded):
        with one.applied(vlm):
            found.append(vlm.forward(case.batch))
    assert torch.equal(*found)


def merge(case: Case) -> None:
    """Edits that are folded into weights do what hooks do, also from a written checkpoint."""
    found = {}
    for kind in ("ffn_out", "mhsa_out"):
        places = [Site(case.last - 1, kind), Site(case.last, kind)]
        found[kind] = unfoldable(case.vlm, places)
        if not found[kind]:
            check_folded(case.vlm, places, case.pictured, case.folder / kind)
    if found["ffn_out"]:
        raise UsageError("; ".join(dict.fromkeys(each.why for each in found["ffn_out"].values())))


# -- gradients -------------------------------------------------------------------------------------


def gradient(case: Case) -> None:
    """The loss of an answer has a gradient at every picture's pixels."""
    case.need_pictures()
    vlm = case.vlm
    key = next(name for name in PIXELS if name in case.batch.inputs)
    pixels = case.batch.inputs[key].detach().clone().requires_grad_(True)
    batch = replace(case.batch, inputs={**case.batch.inputs, key: pixels})
    with differentiable(vlm):
        logits = vlm.forward(batch, logits_to_keep=1, grad=True)
        logits.float().log_softmax(-1)[:, 0, -1].sum().backward()
    assert pixels.grad is not None and pixels.grad.isfinite().all() and pixels.grad.any()


def attack(case: Case) -> None:
    """`care attack` can go through the processor, from RGB to `pixel_values`."""
    case.need_pictures()
    if case.stub:
        raise Untried("its image processor needs torchvision")
    path, levels = PixelPath.of(case.vlm, tiny.picture(0, (64, 64)))
    levels.requires_grad_(True)
    path(levels / 255).sum().backward()
    assert levels.grad is not None and levels.grad.any()


PIXELS = ("pixel_values", "pixel_values_images")
"""What models call the pixels that they are given."""

CHECKS: dict[str, Callable[[Case], None]] = {
    "sites": sites,
    "neurons": neurons,
    "image mask": mask,
    "decode": decode,
    "beams": beams,
    "padding, batch": padding,
    "score": likelihood,
    "mixed batch": mixed,
    "ablate": ablation,
    "attribute": attribution,
    "fit": fit,
    "apply": application,
    "strength 0": strength,
    "monitors": monitors,
    "save, load": files,
    "merge": merge,
    "gradient": gradient,
    "PGD": attack,
}
"""By the heads of their columns."""
