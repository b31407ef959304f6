"""The commands on suites: `care list suites`, `show suite`, `check suites` and `download suite`.

A suite is a published one, one of the embedded model's small world, or a .jsonl file. Nothing is
computed here. `check` exits with 1 if it finds a goal on both sides.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from care.errors import UsageError
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import AsJson
from care.interfaces.cli.tables import print_table

if TYPE_CHECKING:
    from care.data.benchmark import Benchmark
    from care.data.contamination import Leak

Name = Annotated[str, typer.Argument(help="Name (see `care list suites`) or a .jsonl file.")]
Copy = Annotated[
    Path | None, typer.Option("--path", help="Local copy of a published suite: folder or table.")
]
Pictures = Annotated[
    Path | None, typer.Option("--images", help="Folder of a published suite's pictures.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="A sample of so many examples.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample.")]


@command("list suites")
def list_suites(as_json: AsJson = False) -> None:
    """Every suite, its role, its number of examples, its licence and how to get it."""
    from care.data.registry import REGISTRY
    from care.data.small_world import suites as world

    ours: list[dict[str, Any]] = [
        {
            "name": name,
            "role": world.role(name),
            "examples": {split: world.length(name, split) for split in world.LENGTHS},
        }
        for name in world.NAMES
    ]
    published = [_facts(benchmark) for benchmark in REGISTRY.values()]
    if as_json:
        print(json.dumps([*ours, *published], indent=1))
        return
    print("The embedded model's small world:")
    splits = list(world.LENGTHS)
    cells = ([row["name"], row["role"], *map(str, row["examples"].values())] for row in ours)
    print_table(["suite", "role", *splits], cells)
    print("\nPublished, fetched or read from a local copy (docs/suites.md):")
    cells = (
        [row["name"], row["role"], str(row["size"] or "?"), _brief(row["licence"]), _how(row)]
        for row in published
    )
    print_table(["suite", "role", "examples", "licence", "to get it"], cells)
    print("`care show suite NAME --facts` says more, and what has to be fetched by hand.")


def _brief(licence: str) -> str:
    """A licence without its remarks, so that a row fits into 80 columns."""
    return licence.split(";")[0].split(" (")[0]


def _how(row: dict[str, Any]) -> str:
    return "by hand" if row["by_hand"] else "gated" if "gated" in row["get"] else "fetched"


def _facts(benchmark: "Benchmark") -> dict[str, Any]:
    source = benchmark.source
    get = [{"hub": "Hugging Face Hub", "github": "GitHub", "web": "web"}[source.host]]
    get += ["gated"] * source.gated + ["pictures by hand"] * bool(source.by_hand)
    return {
        "name": benchmark.name,
        "role": benchmark.role,
        "about": benchmark.about,
        "examples": {},
        "size": benchmark.size,
        "source": source.page,
        "revision": source.revision,
        "licence": source.licence,
        "get": ", ".join(get),
        "by_hand": source.instructions(),
        "differs": benchmark.differs,
    }


@command("show suite")
def show_suite(
    name: Name,
    split: Annotated[
        Literal["fit", "validation", "test"], typer.Option(help="Which part, of the small world.")
    ] = "test",
    n: Annotated[int, typer.Option("-n", min=1, help="How many examples to print.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Write all of them, pictures too, to this .jsonl file.")
    ] = None,
    path: Copy = None,
    images: Pictures = None,
    limit: Limit = None,
    seed: Seed = 0,
    facts: Annotated[
        bool, typer.Option("--facts", help="Only where it comes from; nothing is fetched.")
    ] = False,
) -> None:
    """Where one suite comes from, and its examples."""
    from care.data.jsonl import ENDING, write_suite
    from care.data.registry import REGISTRY, load_suite

    if out is not None and out.suffix != ENDING:
        raise UsageError(f"--out is {out}; pass a file that ends in {ENDING}.")
    if name in REGISTRY:
        _print_facts(_facts(REGISTRY[name]))
    elif facts:
        raise UsageError(f"--facts is for published suites, but {name!r} isn't one.")
    if facts:
        return
    suite = load_suite(name, split, path=path, images=images, limit=limit, seed=seed)
    if out is not None:
        print(write_suite(suite, out))
        return
    cells = ([e.id, e.kind, str(len(e.images)), e.goal, e.prompt] for e in suite.head(n))
    print_table(["id", "kind", "images", "goal", "prompt"], cells)
    if len(suite) > n:
        print(f"{n} of {len(suite)} examples; -n shows more")


def _print_facts(facts: dict[str, Any]) -> None:
    shown = {
        "about": facts["about"],
        "role": facts["role"],
        "examples": str(facts["size"] or "not stated"),
        "source": facts["source"],
        "revision": facts["revision"],
        "licence": facts["licence"],
        "to get it": facts["get"],
        "by hand": facts["by_hand"],
        "differs": facts["differs"],
    }
    for name, value in shown.items():
        if value:
            print(f"{name}: {value}")


@command("check suites")
def check_suites(
    fit: Annotated[str, typer.Argument(help="What is fitted on: a name or a .jsonl file.")],
    test: Annotated[list[str], typer.Argument(help="What is tested on, one or more.")],
    threshold: Annotated[
        float | None, typer.Option(help="Similarity from which on goals count, by it alone.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many pairs to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find goals that are both fitted on and tested, the same or nearly so.

    Exits with 1 if there is one. Of the small world, the fit split of FIT and the test split of
    TEST are taken.
    """
    from care.data.contamination import THRESHOLD, leaks
    from care.data.registry import fitted_suite, load_suite

    limit = THRESHOLD if threshold is None else threshold
    fitted = fitted_suite(fit)
    found: dict[str, list[Leak]] = {}
    sizes: dict[str, int] = {}
    for name in test:
        suite = load_suite(name)
        sizes[name], found[name] = len(suite), leaks(fitted, suite, threshold)
    rows = [{"suite": s, **leak._asdict()} for s, pairs in found.items() for leak in pairs]
    if as_json:
        print(json.dumps({"threshold": limit, "pairs": rows}, indent=1, ensure_ascii=False))
    else:
        _print_leaks(fit, found, sizes, limit, n)
    if rows:
        raise typer.Exit(1)


def _print_leaks(
    fit: str, found: dict[str, list["Leak"]], sizes: dict[str, int], threshold: float, n: int
) -> None:
    pairs = [leak for leaked in found.values() for leak in leaked]
    if pairs:
        cells = (
            [f"{p.similarity:.2f}", p.fitted, p.tested, p.fitted_goal, p.tested_goal]
            for p in pairs[:n]
        )
        print_table(["similarity", "fitted", "tested", "goal fitted", "goal tested"], cells)
        if len(pairs) > n:
            print(f"{n} of {len(pairs)} pairs; -n shows more")
    for name, leaked in found.items():
        hit = len({leak.tested for leak in leaked})
        exact = len({leak.tested for leak in leaked if leak.similarity == 1})
        print(
            f"{name}: {hit} of {sizes[name]} examples share a goal with {fit} (similarity at least "
            f"{threshold:g}), {exact} of them in the same words"
        )
