"""The command `care export`: a run in another package's format, a repair as weights or for vLLM.

Formats of runs and of repairs are told apart by what lies in the folder, and an option of the one
kind is refused with the other.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from care.defenses.export_facts import PARTS, Part
from care.errors import UsageError
from care.evaluation.config import ProbeSpec
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars
from care.models.spec import ModelSpec
from care.pipeline.config import ExportJob
from care.runs.settings import Said

_OF_RUNS = ("inspect",)
_NOT_TAKEN = {
    "inspect": ("model", "drop", "off", "push", "probe"),
    "vllm": ("images", "out", "push", "probe"),
}
"""Options that a format doesn't take; the others: those of runs and of vllm."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is exported, and as what."""

    folder: Annotated[Path, Said("folder")]
    """Folder of a finished run, or of a repair."""
    format: Literal["inspect", "merged", "lora", "vllm"]
    """Of a run: inspect, logs for `inspect view`. Of a repair: merged, a whole checkpoint for
    transformers, lora, an adapter for PEFT, or vllm, the command that serves its edits."""
    out: Path | None = None
    """Folder to write; none: logs of a run, runs/export of a repair."""
    images: bool = False
    """Of a run: load its suites again for their pictures."""
    model: ModelSpec = ModelSpec()
    """Of a repair: what it was fitted on."""
    drop: tuple[str, ...] = ()
    """Of a repair: what weights can't hold and is left out, by commas, of monitors, gates, scopes,
    fusion, centres and sites; the loss is measured; repeatable."""
    off: str | None = None
    """Of a repair for vllm: a word by which a request is answered without it."""
    push: str | None = None
    """Of a repair: owner/name on the Hub to upload it to."""
    probe: ProbeSpec = ProbeSpec()
    """Of a repair: on what the loss is measured."""

    def __post_init__(self) -> None:
        of_runs = self.format in _OF_RUNS
        other = _NOT_TAKEN.get(self.format, ("images", "off"))
        plain = {field.name: field.default for field in fields(self)}
        if wrong := [name for name in other if getattr(self, name) != plain[name]]:
            of_repairs = {"images": "a run", "off": "vllm"}.get(wrong[0], "weights")
            kind = "a repair" if of_runs else of_repairs
            raise UsageError(
                f"--format {self.format} takes no option of {kind}, but got {wrong[0]}; leave it "
                "out, or take another format."
            )

    @property
    def dropped(self) -> tuple[Part, ...]:
        """The parts that are left out; UsageError for one that isn't known."""
        named = [name.strip() for one in self.drop for name in one.split(",")]
        if unknown := [name for name in named if name not in PARTS]:
            raise UsageError(f"--drop takes some of {', '.join(PARTS)}, got {unknown[0]!r:.40}.")
        return tuple(dict.fromkeys(named))  # pyright: ignore[reportReturnType]  checked above


@command("export", "Runs")
@takes(ExportConfig, said={"name": "--model"})
def export(asked: ExportConfig) -> None:
    """Write a run as another package's logs, or a repair as weights; show how vLLM serves it."""
    _check_kind(asked)
    if asked.format in _OF_RUNS:
        from care.interfaces.inspect.logs import write_logs

        for path in write_logs(asked.folder, asked.out or Path("logs"), images=asked.images):
            print(path)
        return
    if asked.format == "vllm":
        _show_command(asked)
    else:
        _export_repair(asked)


def _export_repair(asked: ExportConfig) -> None:
    out = asked.out or Path("runs/export")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there already; name another folder by --out.")
    job = ExportJob(
        repair=asked.folder,
        format=asked.format,  # pyright: ignore[reportArgumentType]  not one of runs
        model=asked.model,
        drop=asked.dropped,
        probe=asked.probe,
        out=out,
    )
    hide_loading_bars()
    from care.defenses.artefact import upload
    from care.pipeline.export import export as write
    from care.runs.progress import Progress

    facts = write(job, progress=Progress)
    for one in facts.maps:
        print(f"{one.name}: {one.rank} directions{', and a bias' if one.bias else ''}")
    print(f"First tokens differ from those under the edits by at most {facts.gap:.2g} nats.")
    for rates in facts.probe:
        shown = ["not judged" if r is None else f"{r:.2f}" for r in (rates.asr, rates.harmless)]
        print(f"{rates.name}: ASR {shown[0]}, harmless answered {shown[1]}")
    print(out)
    if asked.push:
        print(upload(out, asked.push))


def _show_command(asked: ExportConfig) -> None:
    if other := [part for part in asked.dropped if part not in ("monitors", "gates")]:
        raise UsageError(
            f"In vLLM a repair's {other[0]} is honoured, so it can't be left out; --drop takes "
            "monitors and gates there."
        )
    from care.interfaces.vllm.command import serve_command, settings_for, shown

    settings = settings_for(
        asked.folder,
        edits_only="monitors" in asked.dropped,
        opened="gates" in asked.dropped,
        word=asked.off,
    )
    print(shown(serve_command(settings, asked.model)))


def _check_kind(asked: ExportConfig) -> None:
    """UsageError for a repair where a run is meant, and the other way round."""
    from care.defenses.artefact import FACTS
    from care.runs.manifest import MANIFEST

    folder, of_runs = asked.folder, asked.format in _OF_RUNS
    is_run, is_repair = ((folder / name).exists() for name in (MANIFEST, FACTS))
    if of_runs and is_repair and not is_run:
        raise UsageError(
            f"{folder} holds a repair, and {asked.format} is a format of runs; pass a run, or take "
            "--format merged, lora or vllm."
        )
    if not of_runs and is_run and not is_repair:
        inside = folder / "repair"
        told = f"pass its repair {inside}" if inside.exists() else "pass the folder of a repair"
        raise UsageError(
            f"{folder} is a run, and {asked.format} is a format of repairs; {told}, or take "
            "--format inspect."
        )
