"""The command `care attack`: options to an `AttackJob`, its result to a few lines.

Nothing is computed here, and torch is imported only when the command runs.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from care.interfaces.cli.options import (
    DeviceMap,
    Dtype,
    ModelName,
    Precision,
    Revision,
    Seed,
    TrustRemoteCode,
    check_folder,
    hide_loading_bars,
    interval,
    print_table,
)

GateChoice = StrEnum("GateChoice", ["exact", "straight-through", "soft"])
MethodChoice = StrEnum("MethodChoice", ["pgd", "mi-fgsm", "apgd"])

_FILE: dict[str, Any] = {"exists": True, "dir_okay": False}


def attack(
    model: ModelName = None,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("runs/image"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what is in --out, or start.")
    ] = False,
    seed: Seed = 0,
    preset: Annotated[
        str, typer.Option(help="Settings, such as pgd-32, qi-16, astra-apgd-32, care-64.")
    ] = "pgd-32",
    method: Annotated[
        MethodChoice | None, typer.Option(help="The way down, in place of the preset's.")
    ] = None,
    kappa: Annotated[
        int | None,
        typer.Option(min=0, max=255, help="Radius in 8-bit levels; 0: unconstrained."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each attempt.")] = None,
    restarts: Annotated[int | None, typer.Option(min=1, help="Attempts.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    requests: Annotated[
        Path | None, typer.Option(help="Malicious requests of your own, JSON Lines.", **_FILE)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="How answers shall begin, with {goal}.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Sentences of the toxic loss, one a line.", **_FILE)
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Picture to start from; none: one is drawn.", **_FILE)
    ] = None,
    repair: Annotated[
        Path | None, typer.Option(help="Folder of a repair to attack through.")
    ] = None,
    gate: Annotated[
        GateChoice, typer.Option(help="How gradients pass the gates of the repair.")
    ] = GateChoice["exact"],
    evasion: Annotated[
        float, typer.Option(min=0, help="Weight of staying out of the repair's sight.")
    ] = 0.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Attack with and without knowing the repair.")
    ] = False,
    dtype: Dtype = Precision["auto"],
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Optimise an adversarial image against a model, also through a repair, to measure it."""
    check_folder(out, resume)
    from care.attacks import job as jobs
    from care.runs.progress import Progress

    hide_loading_bars()
    job = jobs.AttackJob(
        model=model,
        out=out,
        preset=preset,
        method=None if method is None else str(method),  # pyright: ignore[reportArgumentType]
        kappa=kappa,
        steps=steps,
        restarts=restarts,
        batch_size=batch_size,
        seed=seed,
        requests=requests,
        target=target,
        corpus=corpus,
        start=start,
        repair=repair,
        gate=str(gate),  # pyright: ignore[reportArgumentType]  the choices are the same
        evasion=evasion,
        compare=compare,
        dtype=str(dtype),
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    config = job.config()
    total = config.steps * config.restarts
    with Progress("attack", total * (1 + len(job.attempts) if compare else 1)) as bar:
        done: dict[str, int] = {}

        def advance(name: str, step: int, loss: float) -> None:
            bar.advance(step - done.get(name, 0), note=f"{name} loss {loss:.2f}".strip())
            done[name] = step

        found = jobs.run(job, progress=advance)
    _show(found)
    print(out / "attack.json")


def _show(found: Mapping[str, Any]) -> None:
    names = ["image", "loss before", "loss", "by rounding"]
    rows = (
        [each["file"], *(f"{n:.3f}" for n in (each["losses"][0], each["loss"], each["rounding"]))]
        for each in found["images"].values()
    )
    print_table(names, rows)
    if "threats" in found:
        names = ["defense", "threat", "loss", "ASR"]
        rows = (
            [row["defense"] if threat != "undefended" else "none", threat, f"{loss:.3f}", asr]
            for row in found["threats"]
            for threat in ("undefended", "transfer", "adaptive")
            for loss, asr in [(row[f"loss_{threat}"], _rate(row[f"asr_{threat}"]))]
        )
        print_table(names, rows)


def _rate(rate: Mapping[str, Any] | None) -> str:
    return "" if rate is None else interval(rate)
