"""Which engine answers, and how it is loaded: that of `--upstream`, vLLM as a child, or
transformers.

With `--engine auto` vLLM is taken where it can serve the model with this repair, and transformers
where not; a line of the log says which, and why. The model is loaded here in every case: it reads
what vLLM answers, or answers itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from care.errors import CareError, ModelError
from care.interfaces.serve.child import Child
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.engine import Engine
from care.interfaces.serve.failures import ModelStopped
from care.interfaces.serve.records import Log

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.vlm import VLM

Failed = Callable[[Exception], None]
"""Told, in any thread, that the server can't go on."""


def load(config: ServeConfig, log: Log, held: ExitStack, failed: Failed) -> Engine:
    """The engine of a configuration; what it starts is ended with `held`.

    Raises what loading its model and its repair does.
    """
    from care.defenses.loading import load_defense
    from care.interfaces.serve.local_vllm import check_installed
    from care.interfaces.serve.transformers_engine import TransformersEngine

    defense = load_defense(config.repair)  # what is wrong with it is told before a model is loaded
    if config.engine == "vllm":
        check_installed()
    size = config.model.batch(config.batch_size)
    if config.upstream is not None:
        return _upstream(config, defense, size, held)
    vlm = config.model.load()
    defense.check(vlm)
    why = "as asked"
    if config.engine != "transformers":
        try:
            return _in_vllm(config, vlm, defense, log, held, failed)
        except ModelStopped:
            raise
        except CareError as error:
            if config.engine == "vllm":
                raise
            why = str(error)
    log.write("engine", engine="transformers", why=why)
    return TransformersEngine(vlm, defense, size, config.hold)


def _upstream(config: ServeConfig, defense: Defense, size: int, held: ExitStack) -> Engine:
    from care.interfaces.serve.reading_together import Reader
    from care.interfaces.serve.upstream import Upstream, UpstreamRepair, UpstreamVLM
    from care.interfaces.serve.upstream_engine import UpstreamEngine

    assert config.upstream is not None
    parallel = config.limits.max_waiting
    upstream = Upstream.of(config.upstream, config.upstream_model, parallel)
    held.callback(upstream.close)
    vlm = config.model.load()
    defense.check(vlm)
    repair = UpstreamRepair.of(defense, Reader(vlm, size))
    return UpstreamEngine(UpstreamVLM(vlm, upstream), repair, parallel, config.hold)


def _in_vllm(
    config: ServeConfig, vlm: VLM, defense: Defense, log: Log, held: ExitStack, failed: Failed
) -> Engine:
    from care.defenses.repair.repair import Repair
    from care.interfaces.serve.local_vllm import leave_cores, start
    from care.interfaces.serve.reading_together import Reader
    from care.interfaces.serve.upstream import UpstreamEdits, UpstreamRepair, UpstreamVLM
    from care.interfaces.serve.upstream_engine import UpstreamEngine

    def started(child: Child) -> None:
        held.callback(child.finish)
        log.write("vllm", log=str(child.log))

    child, upstream = start(config, vlm, defense, started)
    held.callback(upstream.close)
    leave_cores(held)
    assert isinstance(defense, Repair)  # others were refused
    child.when_it_ends(
        lambda: failed(
            ModelError(
                f"vLLM, which makes the answers, ended ({child.why()}); `care serve` ends with it, "
                "so start it again."
            )
        )
    )
    log.write("engine", engine="vllm", why="it serves this model with this repair")
    reader = Reader(vlm, config.model.batch(config.batch_size))
    there = UpstreamRepair(defense, reader) if defense.monitors else UpstreamEdits(defense)
    parallel = config.limits.max_waiting
    return UpstreamEngine(UpstreamVLM(vlm, upstream), there, parallel, config.hold, child)
