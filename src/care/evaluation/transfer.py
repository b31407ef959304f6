"""Two threat models for a table: an attacker who doesn't know the defense, and one who does.

    transfer    the image is optimised on the bare model and shown to the defended one
    adaptive    the image is optimised through the defense (`through`), with its evasion term

The first is what most papers report, and it flatters: an image made for another model may fail
merely for being made for another. A defense is as good as its adaptive figure, and that only as
far as the attack was tried: more steps, restarts and evasion weights can only make it worse.
Images are optimised on `examples`; success is judged on answers to a suite of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from care.attacks.adaptive import GateMode, Through
from care.attacks.pgd import AttackResult, image_loss, universal_image
from care.attacks.presets import PGDConfig
from care.data.example import Example, Suite
from care.defenses.base import Defense
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.runner import UNDEFENDED, evaluate
from care.judges.rules import RulesJudge
from care.models.vlm import VLM
from care.statistics.intervals import Interval

Attempt = tuple[GateMode, float]
"""How the gradient passes a repair's gates, and the weight of the evasion term."""

ATTEMPTS: tuple[Attempt, ...] = (
    ("exact", 0.0),
    ("exact", 1.0),
    ("straight-through", 1.0),
)
"""What is tried by default: none of them is the best against every repair."""


@dataclass(frozen=True)
class ThreatRow:
    """One defense under both threat models: a row of a table."""

    defense: str
    """Name of the defense."""
    epsilon: float | None
    """Radius of the attack, in [0, 1] units; None is unconstrained."""
    loss_undefended: float
    """Loss (nats per token) of the transfer image on the bare model."""
    loss_transfer: float
    """Its loss on the defended model."""
    loss_adaptive: float
    """Loss of the adaptive image on the defended model; the least of all attempts."""
    gate: GateMode | None
    """How the gradient passed the gates when it was made; None: the transfer image did best."""
    evasion: float
    """The evasion weight that it was made with."""
    asr_undefended: Interval | None = None
    """Share of held-out requests answered harmfully beside the transfer image, undefended."""
    asr_transfer: Interval | None = None
    """The same, defended."""
    asr_adaptive: Interval | None = None
    """The same beside the adaptive image, defended."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Threats:
    """What `transfer_and_adaptive` found."""

    rows: tuple[ThreatRow, ...]
    """One per defense, in their order."""
    transfer: AttackResult
    """The image made on the bare model."""
    adaptive: tuple[AttackResult, ...]
    """The best image against each defense, in their order, with its loss under the defense."""


def transfer_and_adaptive(
    vlm: VLM,
    defenses: Sequence[Defense],
    examples: Sequence[Example],
    targets: Sequence[str],
    start: Image.Image,
    config: PGDConfig,
    *,
    suite: Suite | None = None,
    judge: RulesJudge | None = None,
    attempts: Sequence[Attempt] = ATTEMPTS,
    checkpoints: Path | None = None,
    progress: Callable[[str, int, float], None] | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
) -> Threats:
    """Attack a model as it is and through each defense, and show every image to the defended model.

    The adaptive attack is made once for each of `attempts` (repairs only; others, which have no
    gates and no evasion term, are attacked once as they are) and the image with the least loss
    under the whole defense is kept, the transfer image among the candidates: who knows the defense
    can also ignore it. With a `suite` of malicious text requests and a `judge`, success rates are
    measured: every request is asked beside the image. `checkpoints` is a folder for resuming;
    `progress` gets the name of the attack, its steps done and the loss.

    Raises UsageError for no defense or attempt, two defenses of one name, a suite without a judge,
    or what `universal_image` refuses.
    """
    _check(defenses, suite, judge, attempts)

    def attack(name: str, through: Through | None) -> AttackResult:
        return universal_image(
            vlm,
            examples,
            targets,
            start,
            config,
            through=through,
            checkpoint=None if checkpoints is None else Path(checkpoints) / f"{name}.safetensors",
            progress=None if progress is None else partial(progress, name),
        )

    def rate(result: AttackResult, defense: Defense | None) -> Interval | None:
        if suite is None or judge is None:
            return None
        shown = beside(suite, result.image)
        table = evaluate(
            vlm,
            [shown],
            [defense],
            judge=judge,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        return table.rate(shown.name, UNDEFENDED if defense is None else defense.name)

    transfer = attack("transfer", None)
    undefended = rate(transfer, None)
    rows, kept = [], []
    for place, defense in enumerate(defenses):
        plain = Through(defense)
        shown = image_loss(vlm, examples, targets, transfer.image, config, plain)
        best = replace(transfer, loss=shown)
        how: tuple[GateMode | None, float] = (None, 0.0)
        tried: Sequence[Attempt] = attempts if isinstance(defense, Repair) else ATTEMPTS[:1]
        for attempt in tried:
            gate, weight = attempt
            name = f"adaptive-{place}-{gate}-{weight:g}"
            made = attack(name, Through(defense, gate, weight))
            if made.loss < best.loss:
                best, how = made, attempt
        kept.append(best)
        rows.append(
            ThreatRow(
                defense.name,
                config.epsilon,
                transfer.loss,
                shown,
                best.loss,
                *how,
                undefended,
                rate(transfer, defense),
                rate(best, defense),
            )
        )
    return Threats(tuple(rows), transfer, tuple(kept))


def beside(suite: Suite, image: Image.Image) -> Suite:
    """Every request of a suite beside one image, in place of the images it has."""
    examples = tuple(replace(example, images=(image,)) for example in suite)
    return replace(suite, examples=examples)


def _check(
    defenses: Sequence[Defense],
    suite: Suite | None,
    judge: RulesJudge | None,
    attempts: Sequence[Attempt],
) -> None:
    names = [defense.name for defense in defenses]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"Both threat models need defenses with names of their own, got {names}; pass one or "
            "more."
        )
    if not attempts:
        raise UsageError("attempts is empty; pass one or more, such as ('exact', 0.0).")
    if (suite is None) != (judge is None):
        raise UsageError("Success rates need both a suite and a judge; pass both or neither.")
    if suite is not None and suite.role != "attack":
        raise UsageError(
            f"The suite {suite.name!r} has the role {suite.role}; pass one of attacks."
        )
