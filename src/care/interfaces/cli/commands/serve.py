"""The command `care serve`: a model under its repair, behind OpenAI's API."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from dataclasses import MISSING

from care.errors import MissingDependencyError
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars
from care.interfaces.serve.config import ServeConfig

INSTALL = "pip install 'care-vlm[serve]'"


@command("serve", "Work")
@takes(ServeConfig, name=MISSING)
def serve(config: ServeConfig) -> None:
    """Serve a model to clients of OpenAI's API, with the repair put on for every answer."""
    config.known_keys()  # before anything slow: what is wrong with them shows at once
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"`care serve` needs packages that can't be imported ({error}); run: {INSTALL}"
        ) from error
    hide_loading_bars()
    from care.interfaces.serve import server

    server.serve(config)
