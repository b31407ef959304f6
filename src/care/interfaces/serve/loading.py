"""Which engine answers, and how it is loaded: that of `--upstream`, vLLM as a child, or
transformers.

With `--engine auto` vLLM is taken where it can serve the model with this repair, and transformers
where not; a line of the log says which, and why. The model is loaded here in every case: it reads
what vLLM answers, or answers itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from care.errors import CareError, ModelError
from care.interfaces.serve.child import Child
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.engine import Engine, TransformersEngine
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

    size = config.model.batch(config.batch_size)
    if config.upstream is not None:
        return _upstream(config, size)
    vlm = config.model.load()
    defense = load_defense(config.repair, vlm)
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


def _upstream(config: ServeConfig, size: int) -> Engine:
    from care.defenses.loading import load_defense
    from care.interfaces.serve.upstream import Upstream, UpstreamRepair, UpstreamVLM

    assert config.upstream is not None
    upstream = Upstream.of(config.upstream, config.upstream_model)
    vlm = UpstreamVLM(config.model.load(), upstream)
    repair = UpstreamRepair.of(load_defense(config.repair, vlm), vlm)
    return TransformersEngine(vlm, repair, size, config.hold)


class _BehindVllm(TransformersEngine):
    """The engine whose answers a child makes."""

    def __init__(self, child: Child, *how: Any) -> None:
        super().__init__(*how)
        self._child = child

    def stop(self) -> None:
        """See `Engine`: what the child is at can't be taken back, so it ends."""
        super().stop()
        self._child.end()

    @property
    def alive(self) -> bool:
        """See `Engine`."""
        return super().alive and self._child.alive


def _in_vllm(
    config: ServeConfig, vlm: VLM, defense: Defense, log: Log, held: ExitStack, failed: Failed
) -> Engine:
    from care.defenses.repair.repair import Repair
    from care.interfaces.serve.local_vllm import start
    from care.interfaces.serve.upstream import UpstreamEdits, UpstreamRepair, UpstreamVLM

    def started(child: Child) -> None:
        held.callback(child.finish)
        log.write("vllm", log=str(child.log))

    child, upstream = start(config, vlm, defense, started)
    assert isinstance(defense, Repair)  # others were refused
    there = UpstreamVLM(vlm, upstream)
    size = config.model.batch(config.batch_size)
    way = UpstreamRepair if defense.monitors else UpstreamEdits
    child.when_it_ends(
        lambda: failed(
            ModelError(
                f"vLLM, which makes the answers, ended ({child.why()}); `care serve` ends with it, "
                "so start it again."
            )
        )
    )
    log.write("engine", engine="vllm", why="it serves this model with this repair")
    return _BehindVllm(child, there, way(defense, there), size, config.hold)
