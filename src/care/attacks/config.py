"""What `care attack` is asked for: what to attack, how, and where the image goes.

Plain data, which the command line shows. What is done with it is in `job`; the settings that it
begins with are in `presets`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from care.attacks.presets import Loss, PGDConfig, preset
from care.errors import UsageError
from care.models.spec import ModelSpec
from care.runs.settings import FILE, MANY, Between, check_bounds
from care.runs.shards import Shard
from care.runs.spec import RunSpec

GateMode = Literal["exact", "straight-through", "soft"]
MethodName = Literal["pgd", "mi-fgsm", "apgd"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One image, optimised against a model or through a repair."""

    run: RunSpec = RunSpec(Path("runs/image"))
    """Where it goes; a size of batches takes the place of the preset's."""
    preset: str = "pgd-32"
    """Settings, such as pgd-32, qi-16, astra-apgd-32, care-64; see `care list attacks`."""
    repair: Path | None = None
    """Folder of a repair, or of another saved defense, to attack through."""
    requests: Annotated[Path | None, FILE] = None
    """Malicious requests of your own, JSON Lines; none: the small world's."""
    target: str | None = None
    """How answers shall begin, with {goal}; none: the model's usual way."""
    corpus: Annotated[Path | None, FILE] = None
    """Sentences of the toxic loss, one a line."""
    start: Annotated[Path | None, FILE] = None
    """Picture to start from; none: one is drawn."""
    method: MethodName | None = None
    """The way down, in place of the preset's."""
    kappa: Annotated[int | None, Between(0, 255)] = None
    """Radius in 8-bit levels, in place of the preset's; 0: unconstrained."""
    steps: Annotated[int | None, Between(1, MANY)] = None
    """Steps of each attempt, in place of the preset's."""
    restarts: Annotated[int | None, Between(1, MANY)] = None
    """Attempts, in place of the preset's."""
    gate: GateMode = "exact"
    """How gradients pass the gates of the repair."""
    evasion: Annotated[float, Between(0, 1e6)] = 0.0
    """Weight of staying out of the repair's sight."""
    shard: str | None = None
    """Descend only the attempts of the I-th of K parts, said as I/K, or auto under torchrun and
    SLURM; --resume without it makes the image of all."""
    model: ModelSpec = ModelSpec()
    """What is attacked."""

    def __post_init__(self) -> None:
        if self.loss == "toxic" and self.corpus is None:
            raise UsageError(
                f"The preset {self.preset} descends the toxic loss; pass --corpus with one "
                "sentence a line, or --requests to descend the jailbreak loss with its settings."
            )
        if self.method not in (None, *get_args(MethodName)):
            known = ", ".join(get_args(MethodName))
            raise UsageError(f"--method is {self.method!r}; use one of {known}.")
        if self.corpus is not None and (self.requests is not None or self.target is not None):
            raise UsageError("Pass --corpus, or --requests and --target; not both.")
        if self.repair is None and self.evasion:
            raise UsageError("--evasion needs a --repair to attack.")
        check_bounds(self)
        if self.target is not None and not self.target.strip():
            raise UsageError("--target is empty; write the beginning of an answer with {goal}.")

    @property
    def part(self) -> Shard | None:
        """The shard that is asked for."""
        return None if self.shard is None else Shard.of(self.shard)

    @property
    def loss(self) -> Loss:
        """What is descended: what is brought along decides, else the preset."""
        if self.corpus is not None:
            return "toxic"
        return "jailbreak" if self.requests is not None else preset(self.preset).loss

    def pgd(self) -> PGDConfig:
        """The preset's settings with what is given in their place."""
        config = preset(self.preset).config
        given = {"steps": self.steps, "restarts": self.restarts, "batch": self.run.batch_size}
        changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        changed["epsilon"] = epsilon = config.epsilon
        if self.kappa is not None:
            changed["epsilon"] = epsilon = self.kappa / 255 if self.kappa else None
        if self.method is not None:
            changed |= {"method": "pgd", "momentum": 1.0 if self.method == "mi-fgsm" else 0.0}
        if self.method == "apgd" or (self.method is None and config.method == "apgd"):
            changed |= {"method": "apgd", "momentum": 0.0, "step_size": 2 * (epsilon or 1)}
        elif config.method == "apgd":
            changed["step_size"] = 1 / 255
        if self.loss == "toxic":
            changed["target_tokens"] = None
        return replace(config, seed=self.run.seed, **changed)
