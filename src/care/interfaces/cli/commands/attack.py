"""The commands `care attack` and `care list attacks`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json

from care.attacks.config import AttackConfig
from care.attacks.presets import PUBLISHED
from care.attacks.variant_attacks import VARIANT_ATTACKS, kind_of
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import AsJson, check_folder, hide_loading_bars
from care.interfaces.cli.tables import print_table
from care.runs.shards import ShardTurns


@command("attack", "Work")
@takes(AttackConfig, without=("thoughts",))
def attack(job: AttackConfig) -> None:
    """Optimise an adversarial image against a model, also through a repair, to measure it."""
    check_folder(job.run.out, job.run.resume or job.part is not None)
    hide_loading_bars()
    from care.attacks.job import run, run_attempts
    from care.runs.progress import Progress

    config, done = job.pgd(), 0
    if job.part is not None:
        mine = ShardTurns(job.part).next(config.restarts)
        if mine:
            run_attempts(job, mine)
        told = ", ".join(str(each + 1) for each in mine) or "none"
        print(f"Attempts of {config.restarts} made: {told}. When all are, --resume without --shard")
        print(f"makes the image of them in {job.run.out}.")
        return
    with Progress("attack", config.steps * config.restarts) as bar:

        def advance(step: int, loss: float) -> None:
            nonlocal done
            bar.advance(step - done, note=f"loss {loss:.2f}")
            done = step

        found = run(job, progress=advance)
    names = ["image", "loss before", "loss", "by rounding"]
    rows = (
        [each["file"], *(f"{n:.3f}" for n in (each["losses"][0], each["loss"], each["rounding"]))]
        for each in found["images"].values()
    )
    print_table(names, rows)
    print(job.run.out / "attack.json")


@command("list attacks")
def list_attacks(as_json: AsJson = False) -> None:
    """Every image attack by the paper that it is from, and every attack in variants."""
    from care.attacks.variants import FixedAttack

    rows = [
        {
            "name": name,
            "loss": each.loss,
            "method": each.config.method,
            "epsilon": each.config.epsilon,
            "steps": each.config.steps,
        }
        for name, each in PUBLISHED.items()
    ]
    in_variants = [
        {
            "name": name,
            "changes": kind.stage,
            "tries": kind().tries,
            "searched": not issubclass(kind, FixedAttack),
            "source": kind.source,
            "about": (kind.__doc__ or "").splitlines()[0],
        }
        for name, kind in ((name, kind_of(name)) for name in VARIANT_ATTACKS)
    ]
    if as_json:
        print(json.dumps([*rows, *in_variants], indent=1))
        return
    cells = (
        [
            str(row["name"]),
            str(row["loss"]),
            str(row["method"]),
            "none" if row["epsilon"] is None else f"{round(255 * row['epsilon'])}/255",
            str(row["steps"]),
        ]
        for row in rows
    )
    print_table(["preset", "loss", "method", "radius", "steps"], cells)
    print("\nIn variants, the best of which counts, for care evaluate --adaptive:")
    shown = ([str(row[key]) for key in ("name", "tries", "about")] for row in in_variants)
    print_table(["attack", "tries", "what"], shown)
