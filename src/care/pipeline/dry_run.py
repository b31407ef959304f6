"""What a main job would ask, and what it needs, before anything is fetched or fitted.

What stages ask is counted on the splits that the job itself makes (`forecast`). A stage of n texts
and k single positions takes, in batches of B and with the measured seconds p of a batch's prompts
and d of each further token of it,

    seconds ≤ (n · p + k · d) / B

since refusals end early. For a GPU of a named class, p is taken to be bound by arithmetic and d by
memory, and each is scaled by what this machine was measured to reach against `REACHED` of what its
vendor states (roofline); a pass takes at least `LAUNCHED` for each layer. Both are assumed, so it
is an order of magnitude.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from care.data.at_hand import SuiteNeeds, needs
from care.data.example import Example
from care.diagnosis.activation_means import spread
from care.errors import SiteError, UsageError
from care.models.vlm import VLM
from care.pipeline.config import NAMED, RepairJob
from care.pipeline.forecast import DiskUse, ModelShape, StageWork, disk_of, stages_of
from care.pipeline.made_pictures import attack_on
from care.pipeline.split_plan import Split
from care.pipeline.splits import plan_of
from care.runs.environment import GIB, peak_memory_gib

REACHED = 0.5
"""Share of a vendor's peak figures that is taken to be reached."""

LAUNCHED = 0.8e-3
"""Seconds a layer that a pass takes on a GPU however fast that is: Python, and starting kernels."""

PROBE_SECONDS = 30.0
"""How long the pace is measured at most, but for the first batch."""

_TOKENS = 8
"""Tokens that are made to see how long each takes."""

_SPLITS: tuple[Split, ...] = ("fit", "validation", "test")


@dataclass(frozen=True)
class GpuClass:
    """What a vendor states of a GPU."""

    bandwidth: float
    """Bytes a second from its memory."""
    arithmetic: float
    """Operations a second in bfloat16, dense."""
    memory_gib: float
    """Its memory."""


GPU_CLASSES: Mapping[str, GpuClass] = {
    "l4": GpuClass(0.30e12, 121e12, 24),
    "rtx-4090": GpuClass(1.01e12, 165e12, 24),
    "l40s": GpuClass(0.86e12, 362e12, 48),
    "a100-80gb": GpuClass(2.04e12, 312e12, 80),
    "h100": GpuClass(3.35e12, 989e12, 80),
    "h200": GpuClass(4.80e12, 989e12, 141),
}
"""By name; from data sheets."""


@dataclass(frozen=True)
class AnswerPace:
    """How fast a model answers on this machine."""

    prompt: float
    """Seconds for the prompts of a batch."""
    token: float
    """Seconds for a further token of a batch."""
    batch: int
    """Examples in it."""
    weights_gib: float
    """Memory of the weights."""
    layers: int
    """Layers of the language model."""
    peak_gib: float
    """Most memory that was taken, on the accelerator or else of the process."""

    def hours(self, stages: Sequence[StageWork]) -> float:
        """For all that these stages ask."""
        seconds = (
            (each.prompts * each.share * self.prompt + each.tokens * self.token) / self.batch
            for each in stages
        )
        return sum(seconds) / 3600

    def on(self, gpu: GpuClass, here: GpuClass) -> AnswerPace:
        """The pace on a GPU of a class, where `here` is what this machine was measured to reach."""
        least = self.layers * LAUNCHED
        return replace(
            self,
            prompt=max(least, self.prompt * here.arithmetic / (REACHED * gpu.arithmetic)),
            token=max(least, self.token * here.bandwidth / (REACHED * gpu.bandwidth)),
        )


@dataclass(frozen=True)
class DryRun:
    """What a job needs and asks."""

    needed: tuple[SuiteNeeds, ...]
    """What each named suite needs."""
    sizes: dict[str, dict[str, int]]
    """Examples of each suite that is at hand, by split."""
    stages: tuple[StageWork, ...]
    """What is asked of these; where the model's shape isn't known, for answers alone."""
    disk: DiskUse | None
    """What is written; None where the shape isn't known."""
    steps: int
    """Steps of descents for the pictures that it makes."""
    examples: tuple[Example, ...]
    """Those to test, on which the pace can be measured."""


def shape_of(vlm: VLM) -> ModelShape:
    """What of a loaded model decides how much is asked."""
    anatomy = vlm.anatomy
    try:
        neurons = anatomy.neurons.total
    except SiteError:  # they can't be reached, and aren't asked about
        neurons = 0
    return ModelShape(anatomy.n_layers, anatomy.width, neurons)


def dry_run(job: RepairJob, shape: ModelShape | None = None) -> DryRun:
    """What the job would do with the suites that are at hand; the model isn't loaded. Passes and
    disk need its `shape`.

    Raises what making its splits raises.
    """
    names = [name for option in NAMED for name in getattr(job, option)]
    needed = tuple(map(needs, names))
    there = {each.name for each in needed if each.at_hand}
    some = {option: tuple(n for n in getattr(job, option) if n in there) for option in NAMED}
    split = bool(some["attacks"]) and bool(some["benign"])
    if job.attacks and not split:  # nothing to fit on is at hand: only what is tested is counted
        some |= {"attacks": (), "benign": ()}
    plan = plan_of(replace(job, pgd=(), **some), small_world=not job.attacks)
    sizes: dict[str, dict[str, int]] = {}
    for place in _SPLITS:
        for suite in plan[place]:
            sizes.setdefault(suite.name, dict.fromkeys(_SPLITS, 0))[place] = len(suite)
    tests = tuple(example for suite in plan["test"] for example in suite)
    stages = tuple(stages_of(job, plan, shape))
    disk = None if shape is None else disk_of(job, plan, shape, stages)
    return DryRun(needed, sizes, stages, disk, _steps(job), tests)


def _steps(job: RepairJob) -> int:
    configs = [
        attack_on(job, None, radius, split, job.run.out).pgd()
        for radius in job.pgd
        for split in _SPLITS
    ]
    return sum(config.steps * config.restarts for config in configs)


# -- the pace of this machine ----------------------------------------------------------------------


def probe(vlm: VLM, examples: Sequence[Example], batch: int) -> AnswerPace:
    """The pace at which the model answers these, measured on at most a batch of them."""
    if not examples:
        raise UsageError("Nothing to measure the pace on is at hand; fetch a suite first.")
    some = spread(examples, batch)
    _seconds(vlm, some, 1)  # the first batch warms caches
    one, many = [], []
    begun = time.perf_counter()
    while not many or (len(many) < 3 and time.perf_counter() - begun < PROBE_SECONDS / 2):
        one.append(_seconds(vlm, some, 1))
        many.append(_seconds(vlm, some, 1 + _TOKENS))
    weights = sum(p.numel() * p.element_size() for p in vlm.model.parameters())
    peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    token = max(0.0, min(many) - min(one)) / _TOKENS
    taken, layers = peak or peak_memory_gib() or 0.0, vlm.anatomy.n_layers
    return AnswerPace(min(one), token, len(some), weights / GIB, layers, taken)


def reached(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> GpuClass:
    """What this machine reaches in a large product and a large copy."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    flops = 2 * size**3 / _each(lambda: a @ a, device, seconds)
    large = torch.ones(2**26, device=device, dtype=torch.uint8)  # 64 MiB, more than caches hold
    copied = 2 * large.numel() / _each(large.clone, device, seconds)
    return GpuClass(copied, flops, 0.0)


def _each(work: object, device: torch.device, seconds: float) -> float:
    """Seconds of one call of `work`."""
    assert callable(work)
    work()
    _wait(device)
    begun, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begun < seconds:
        work()
        _wait(device)
        count += 1
    return (time.perf_counter() - begun) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(vlm: VLM, examples: Sequence[Example], tokens: int) -> float:
    begun = time.perf_counter()
    vlm.answers(list(examples), max_new_tokens=tokens, batch_size=len(examples))
    return time.perf_counter() - begun
