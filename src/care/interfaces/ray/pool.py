"""Shards as tasks of a pool of Ray actors: killed workers are replaced, and their shards go on.

Every shard is the command itself with `--shard I/K --resume`, run within an actor, so that the
folders are those that processes without Ray would write, and either goes on where the other
stopped. A shard whose worker dies is tried again by another, from the last batch that is on disk;
one that ends with an error isn't, since it would again. All workers see the same folder. Not here:
what a shard does (`care.runs.shards`), and putting them together (`care.runs.merging`).
"""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from care.errors import CareError, UsageError
from care.runs.settings import MANY, Between, check_bounds
from care.runs.shards import MOST, Shard

if TYPE_CHECKING:
    from types import ModuleType

Main = Callable[[Sequence[str]], int]
"""Runs a command line and gives its exit code."""

PATIENCE = 10.0
"""Seconds in which the head of a cluster has to answer."""

_ROUNDING = 1e-9
"""Of quotients that would be whole, such as 0.3 / 0.1."""

SPLIT = ("evaluate", "repair", "fit", "attack")
"""Commands that take `--shard`."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How many workers there are, where, and what each of them has."""

    workers: Annotated[int, Between(1, MOST)] = 2
    """Processes that hold the model."""
    shards: Annotated[int | None, Between(1, MOST)] = None
    """Parts of the job; none: as many as workers. The model is loaded for each."""
    address: str | None = None
    """Address of a Ray cluster, or auto; none: this machine."""
    cpus: Annotated[float, Between(0, MANY)] = 1.0
    """Cores that Ray reserves for each worker, and threads that it computes with."""
    gpus: Annotated[float, Between(0, MANY)] = 0.0
    """GPUs that Ray reserves for each worker."""
    retries: Annotated[int, Between(0, MANY)] = 3
    """How often a shard is given to another worker after one died."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def count(self) -> int:
        """Parts of the job."""
        return self.shards or self.workers


def folder_of(arguments: Sequence[str]) -> str:
    """The --out of a command that can be split.

    UsageError for another command, one without --out, or one that is a shard already.
    """
    if not arguments or arguments[0] not in SPLIT:
        told = " ".join(arguments[:1]) or "nothing"
        raise UsageError(f"Commands in shards are {', '.join(SPLIT)}, got {told}; name one.")
    if any(word.split("=")[0] in ("--shard", "--dry-run") for word in arguments):
        raise UsageError("Shards are given out here; leave out --shard and --dry-run.")
    for place, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        if name == "--out" and (sign or place + 1 < len(arguments)):
            return value if sign else arguments[place + 1]
    raise UsageError("Say --out, a folder that all workers see.")


def run_shards(
    main: Main,
    arguments: Sequence[str],
    config: PoolConfig,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a command in shards on a pool of workers; `tell` gets a line when one is done.

    Raises UsageError where Ray isn't installed, can't be reached or has no room for a worker, and
    warns where it has room for fewer than asked for; CareError for shards that ended
    with an error, or whose workers died too often, when all others are done.
    """
    folder_of(arguments)
    ray = _ray()
    _connect(ray, config)
    resumed = [] if "--resume" in arguments else ["--resume"]
    shards = [Shard(number + 1, config.count) for number in range(config.count)]
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        workers = min(workers_with_room(config, nodes), len(shards))
        worker = ray.remote(
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            max_restarts=-1,
            max_task_retries=config.retries,
        )(_Worker)
        actors = [worker.remote(main) for _ in range(workers)]
        pool = ray.util.ActorPool(actors)
        for shard in shards:
            pool.submit(
                lambda actor, told: actor.run.remote(told),
                [*arguments, *resumed, "--shard", str(shard)],
            )
        _gather(ray, pool, tell)
    finally:
        ray.shutdown()


def workers_with_room(config: PoolConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of the workers have room at once on nodes with these resources, CPU and GPU.

    A shard that is given to a worker without room would wait for ever. Warns where they aren't all,
    and raises UsageError where it is none.
    """
    room = sum(_room(config, node) for node in nodes)
    if room >= config.workers:
        return config.workers
    found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes[:8])
    each = f"--cpus {config.cpus:g} and --gpus {config.gpus:g} of a worker"
    if not room:
        raise UsageError(
            f"No node of Ray's has room for {each}; CPUs and GPUs by node are "
            f"{found or 'none'}: ask for less, or add nodes."
        )
    warnings.warn(
        f"Ray has room for {room:g} of {config.workers} workers by {each} (CPUs and GPUs by node: "
        f"{found}), so there are {room:g}.",
        stacklevel=3,
    )
    return int(room)


def _room(config: PoolConfig, node: Mapping[str, float]) -> float:
    """Workers that have room on one node; without end where nothing is reserved for them."""
    cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
    by_cpus = math.floor(cpus / config.cpus + _ROUNDING) if config.cpus else math.inf
    if not config.gpus:
        return by_cpus
    if config.gpus < 1:  # one GPU each, of which others have their share
        return min(by_cpus, math.floor(gpus) * math.floor(1 / config.gpus + _ROUNDING))
    return min(by_cpus, math.floor(gpus / config.gpus))


def _gather(ray: ModuleType, pool: Any, tell: Callable[[str], None]) -> None:
    failed: list[str] = []
    while pool.has_next():
        try:
            shard, code = pool.get_next_unordered()
        except ray.exceptions.RayError as error:  # the actor died too often
            failed.append(f"one whose workers died ({type(error).__name__})")
            continue
        if code:
            failed.append(f"{shard} (exit code {code})")
        else:
            tell(f"Shard {shard} is done.")
    if failed:
        raise CareError(
            f"Shards failed: {', '.join(failed)}; what they said stands above. The others are "
            "kept: mend it and run the same command again."
        )


class _Worker:
    """Runs shards, one after the other."""

    def __init__(self, main: Main) -> None:
        self._main = main

    def run(self, arguments: list[str]) -> tuple[str, int]:
        """The shard and the exit code of a command."""
        return arguments[-1], self._main(arguments)


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.util  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "Ray isn't installed; pip install 'care-vlm[ray]', or start the shards yourself with "
            "--shard I/K."
        ) from error
    return ray


def _connect(ray: ModuleType, config: PoolConfig) -> None:
    how: dict[str, Any] = {"address": config.address}
    if config.address is None:
        how = {"num_cpus": max(1, math.ceil(config.workers * config.cpus))}
    try:
        host, _, port = (config.address or "").rpartition(":")
        if host and port.isdigit():  # Ray itself would wait for minutes
            socket.create_connection((host.rpartition("/")[2], int(port)), PATIENCE).close()
        ray.init(include_dashboard=False, logging_level="warning", **how)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"Ray can't be reached at {config.address or 'this machine'} ({error!s:.200}); start "
            "it, or leave out --address."
        ) from error
