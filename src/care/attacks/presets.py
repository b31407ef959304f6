"""How an image is optimised: the settings, and those of published attacks as data.

| preset | from | loss | steps | step | batch | start |
|---|---|---|---|---|---|---|
| qi-16 … -128, -unconstrained | Qi et al. | toxic | 5000 | 1/255 | 8 | noise |
| astra-16 … -64, -unconstrained | Wang et al. | toxic | 5000 | 1/255 | 8 | noise |
| astra-apgd-16, -32 | Wang et al., out of distribution | toxic | 5000 | 2 ε | 8 | noise |
| astra-mi-fgsm-16, -32 | Wang et al., out of distribution | toxic | 5000 | 1/255 | 8 | noise |
| care-16 … -64, -unconstrained | Fu et al. | jailbreak | 1000 | 1/1020 | 1 | picture |
| pgd-32, pgd-unconstrained | here, embedded model | jailbreak | 40 | 2, 10/255 | 8 | picture |

Qi et al. 2023 (arXiv 2306.13213), Wang et al. 2024 (ASTRA, arXiv 2411.16721), Fu et al. 2026 (CARE,
arXiv 2603.27240); APGD: Croce and Hein 2020; MI-FGSM: Dong et al. 2018.

The loss is what the paper uses with them: sentences of a corpus after an empty prompt (toxic), or
the beginning of an answer to a request (jailbreak). ASTRA takes the code of Qi et al. and states no
steps of its own; those of its out-of-distribution attacks aren't known, and are taken to be the
same. ASTRA uses both losses. Step sizes below 1/255 lose a part of their effect when the image is
rounded to 8 bits: the result says how much.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from care.errors import UsageError
from care.runs.settings import MANY, MAX_BATCH, MAX_SEED, require

DescentMethod = Literal["pgd", "apgd"]
Loss = Literal["jailbreak", "toxic"]


@dataclass(frozen=True)
class PGDConfig:
    """How the image is optimised."""

    epsilon: float | None
    """Radius of the L∞ ball around the start image, in [0, 1] units (32/255 is κ = 32), rounded
    down to whole 8-bit levels; None leaves the image unconstrained."""

    steps: int
    """Number of sign steps."""

    step_size: float
    """Change of every pixel per step, in [0, 1] units; of APGD the first step, 2 ε in its paper."""

    batch: int = 8
    """Requests per step; of APGD, whose every step sees all requests, how many at once."""

    target_tokens: int | None = 4
    """How many of the first response tokens the loss covers; None: whole targets."""

    momentum: float = 0.0
    """Decay μ of the accumulated gradient (MI-FGSM, Dong et al. 2018); 0 is plain PGD."""

    seed: int = 0
    """Seed of the order of the requests and of random starts; nothing else is random."""

    method: DescentMethod = "pgd"
    """`pgd` (with `momentum`, MI-FGSM) or `apgd` (Croce and Hein 2020)."""

    random_start: bool = False
    """Begin anywhere in the ball (of an unconstrained attack: with noise), not at its centre."""

    restarts: int = 1
    """Attempts, from the second on with random starts; the image with the least loss is kept."""

    def __post_init__(self) -> None:
        # `not a <= b` also refuses NaN.
        if self.epsilon is not None and not 1 / 255 <= self.epsilon <= 1:
            raise UsageError(
                f"epsilon must lie between 1/255 and 1, or be None, got {self.epsilon}."
            )
        most = 2 if self.method == "apgd" else 1
        if not 0 < self.step_size <= most:
            raise UsageError(f"step_size must be above 0 and at most {most}, got {self.step_size}.")
        if not 0 <= self.momentum <= 1:
            raise UsageError(f"momentum must lie between 0 and 1, got {self.momentum}.")
        if self.target_tokens is not None and self.target_tokens < 1:
            raise UsageError(
                f"target_tokens must be at least 1, or None, got {self.target_tokens}."
            )
        if self.seed < 0:
            raise UsageError(f"seed must not be negative, got {self.seed}.")
        require(
            self,
            {"steps": 1, "batch": 1, "restarts": 1, "seed": 0},
            {"steps": MANY, "batch": MAX_BATCH, "restarts": MANY, "seed": MAX_SEED},
        )
        if self.method not in get_args(DescentMethod):
            raise UsageError(
                f"method is {self.method!r}; use one of {', '.join(get_args(DescentMethod))}."
            )
        if self.method == "apgd" and self.momentum:
            raise UsageError(
                f"momentum is {self.momentum} but APGD has its own; leave it at 0 or use pgd."
            )

    @property
    def radius(self) -> int:
        """Radius of the ball in whole 8-bit levels; 255 is no constraint."""
        return 255 if self.epsilon is None else int(self.epsilon * 255 + 1e-6)


@dataclass(frozen=True)
class PublishedAttack:
    """A published attack."""

    loss: Loss
    """What it descends."""

    config: PGDConfig
    """How."""


PRESETS: dict[str, PGDConfig] = {
    "pgd-32": PGDConfig(epsilon=32 / 255, steps=40, step_size=2 / 255, momentum=0.5),
    "pgd-unconstrained": PGDConfig(epsilon=None, steps=40, step_size=10 / 255, momentum=0.5),
}
"""The two attacks that the embedded model is measured with."""

_QI = PGDConfig(
    epsilon=16 / 255, steps=5000, step_size=1 / 255, batch=8, target_tokens=None, random_start=True
)
_CARE = PGDConfig(epsilon=16 / 255, steps=1000, step_size=1 / 255 / 4, batch=1, target_tokens=None)


def _radii(config: PGDConfig, *levels: int | None) -> dict[str, PGDConfig]:
    """The same attack at several radii in 8-bit levels; of APGD the first step is twice as long."""
    found = {}
    for level in levels:
        epsilon = None if level is None else level / 255
        step = 2 * (epsilon or 1) if config.method == "apgd" else config.step_size
        name = "unconstrained" if level is None else str(level)
        found[name] = replace(config, epsilon=epsilon, step_size=step)
    return found


def _published() -> dict[str, PublishedAttack]:
    apgd = replace(_QI, method="apgd")
    families: list[tuple[str, Loss, dict[str, PGDConfig]]] = [
        ("qi", "toxic", _radii(_QI, 16, 32, 64, 128, None)),
        ("astra", "toxic", _radii(_QI, 16, 32, 64, None)),
        ("astra-apgd", "toxic", _radii(apgd, 16, 32)),
        ("astra-mi-fgsm", "toxic", _radii(replace(_QI, momentum=1.0), 16, 32)),
        ("care", "jailbreak", _radii(_CARE, 16, 32, 64, None)),
    ]
    found = {
        f"{family}-{radius}": PublishedAttack(loss, config)
        for family, loss, configs in families
        for radius, config in configs.items()
    }
    return found | {name: PublishedAttack("jailbreak", config) for name, config in PRESETS.items()}


PUBLISHED: dict[str, PublishedAttack] = _published()
"""Every preset of the table in the module's header, by name."""


def preset(name: str) -> PublishedAttack:
    """The preset `name`; UsageError lists those there are."""
    if name not in PUBLISHED:
        raise UsageError(f"There is no preset {name!r}; use one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
