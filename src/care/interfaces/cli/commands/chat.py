"""The command `care chat`: a page in the browser, bare and repaired answers side by side."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from dataclasses import MISSING

from care.errors import MissingDependencyError
from care.interfaces.chat.config import ChatConfig
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars

INSTALL = "pip install 'care-vlm[chat]'"


@command("chat", "Work")
@takes(ChatConfig, name=MISSING)
def chat(config: ChatConfig) -> None:
    """Show a page in the browser that answers bare and repaired, side by side, and says why."""
    config.logins()  # before anything slow: what is wrong with them shows at once
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"`care chat` needs gradio, which can't be imported ({error}); run: {INSTALL}"
        ) from error
    hide_loading_bars()
    from care.interfaces.chat import page

    page.show(config)
