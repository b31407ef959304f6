"""What a dry run foretells, against what the job on a tiny model really asks and writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from care.models.spec import ModelSpec
from care.pipeline import workflow
from care.pipeline.dry_run import dry_run, shape_of
from care.pipeline.forecast import ModelShape, stages_of
from care.pipeline.splits import plan_of
from care.runs.run import Run
from kit.jobs import a_job, files, tiny_parts  # noqa: F401

FORETOLD = {
    "watched selection": "selection",
    "random discriminant": "monitors",
    "controls": "evaluation",  # both are asked at once
}
"""Stages of a job, or of its forecast, that are told together."""

LEAST = {"sites": 0.7, "neurons": 0.7, "monitors": 0.7}
"""Share of the forecast of prompts that is asked at least; of others, whose answers may all raise
an alarm or none, `OTHERS`. No stage may ask more than is foretold."""
OTHERS = 0.4


@pytest.mark.slow
def test_what_is_foretold_is_what_is_asked(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = ModelSpec().load()
    now = ["before"]
    prompts: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    stage = Run.stage

    @contextmanager
    def known(self: Run, name: str) -> Generator[None, None, None]:
        now.append(FORETOLD.get(name, name))
        with stage(self, name):
            yield
        now.pop()

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["input_ids"].shape
        (prompts if length > 1 else tokens)[now[-1]] += rows

    monkeypatch.setattr(Run, "stage", known)
    job = a_job(tmp_path / "run", batch_size=8, max_new_tokens=4, **files)
    found = dry_run(job, shape_of(vlm))
    handle = vlm.model.register_forward_pre_hook(count, with_kwargs=True)
    workflow.repair(job)
    handle.remove()

    foretold: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for each in found.stages:
        whole = foretold[FORETOLD.get(each.name, each.name)]
        for place, number in enumerate((each.prompts, each.tokens, each.answers)):
            whole[place] += number
    shown = {name: (prompts[name], tokens[name], *foretold[name]) for name in foretold}
    assert prompts.keys() | tokens.keys() <= foretold.keys(), shown
    for name, (most, single, _) in foretold.items():
        assert LEAST.get(name, OTHERS) * most <= prompts[name] <= most, (name, shown)
        assert tokens[name] <= single, (name, shown)
    assert prompts["material"] == foretold["material"][2]  # every request is read once
    for name in ("channels", "screening"):
        assert prompts[name] == foretold[name][0]
    for name in ("neurons", "channels"):
        assert tokens[name] == foretold[name][1]

    assert found.disk is not None
    size = {path: path.stat().st_size for path in job.run.out.rglob("*") if path.is_file()}
    activations = size[job.run.out / "decisions.safetensors"]
    assert 0.4 * found.disk.activations <= activations <= found.disk.activations
    rows = sum(n for path, n in size.items() if path.name == "rows.jsonl")
    assert 0.2 * found.disk.answers <= rows <= found.disk.answers
    kept = sum(n for path, n in size.items() if path.parent.name in ("repair", "monitors"))
    assert 0.1 * found.disk.artefact <= kept <= found.disk.artefact, kept


def test_a_model_of_more_layers_asks_more_of_its_diagnosis(files: dict[str, Path]) -> None:
    job = a_job(Path("unused"), max_new_tokens=4, **files)
    plan = plan_of(job)
    small = ModelShape(layers=4, width=64, neurons=1000)
    by_name = [
        {each.name: each for each in stages_of(job, plan, shape)}
        for shape in (small, replace(small, layers=8), replace(small, neurons=100_000), None)
    ]
    first, deeper, wider, unknown = by_name
    assert deeper["sites"].prompts > first["sites"].prompts
    assert deeper["channels"].tokens > first["channels"].tokens
    assert wider["neurons"].tokens > 5 * first["neurons"].tokens
    assert wider["sites"] == first["sites"]
    assert unknown.keys() == {"material", "selection", "monitors", "evaluation", "controls"}
    assert all(unknown[name] == first[name] for name in unknown)
