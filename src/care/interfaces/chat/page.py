"""The page that `care chat` shows: gradio's blocks around two conversations.

One request is worked off at a time, and others wait in gradio's queue. Nothing leaves this machine:
no fonts from elsewhere, no counts for gradio's authors, no tunnel. Uploaded pictures lie in
gradio's folder for temporary files, and conversations in memory, until nobody has used them for
about an hour. Not here: what is asked (`answers`), and what a conversation looks like (`shown`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from care.errors import CareError, UsageError
from care.interfaces.chat.answers import Answerer, Sides
from care.interfaces.chat.config import ChatConfig
from care.interfaces.chat.shown import bare_html, failure_html, repaired_html
from care.interfaces.requests.hosts import listening, url_of

KEPT = 3600
"""Seconds after which what nobody uses is deleted."""

STYLE = Path(__file__).with_name("page.css")


def page(answerer: Answerer) -> gr.Blocks:
    """The page of a model and a defense."""
    defense, limits = answerer.defense, answerer.config.limits

    def shown(sides: Sides) -> tuple[str, str]:
        return bare_html(sides.bare), repaired_html(sides.repaired, defense)

    def ask(said: dict[str, Any] | None, sides: Sides) -> Iterator[tuple[Any, ...]]:
        said = said or {}
        try:
            answers = answerer.both(sides, said.get("text") or "", said.get("files") or ())
            box = gr.MultimodalTextbox(value=None)  # emptied once the request is taken
            for sides in answers:
                yield *shown(sides), "", box, sides
                box = gr.skip()
        except CareError as error:
            yield gr.skip(), gr.skip(), failure_html(str(error)), gr.skip(), gr.skip()

    def clear() -> tuple[Any, ...]:
        return *shown(Sides()), "", None, Sides()

    with gr.Blocks(
        title="care chat", analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True
    ) as blocks:
        sides = gr.State(Sides(), time_to_live=KEPT)
        gr.HTML(_head(answerer))
        with gr.Row():
            panels = [
                gr.HTML(html, elem_id=f"care-{name}")
                for name, html in zip(("bare", "repaired"), shown(Sides()), strict=True)
            ]
        told = gr.HTML("", elem_id="care-told")
        box = gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            placeholder="Ask something; pictures may be added, pasted or dropped here",
            label="Request",
            show_label=False,
            autofocus=True,
            max_plain_text_length=10**6,
            elem_id="care-box",
        )
        with gr.Row():
            new = gr.Button("New conversation", size="sm", scale=0, min_width=180)
        outputs = [*panels, told, box, sides]
        box.submit(
            ask, [box, sides], outputs, api_name="ask", show_progress="hidden", concurrency_limit=1
        )
        new.click(clear, None, outputs, api_name="clear", show_progress="hidden")
    return blocks.queue(max_size=limits.max_waiting)


def show(config: ChatConfig) -> None:
    """Load what a configuration names and show it until Ctrl-C or SIGTERM.

    Raises what loading does, and UsageError for an address that can't be had.
    """
    logins = config.logins()
    with listening(config.host, config.port) as listener:
        port = listener.getsockname()[1]
    blocks = page(Answerer.load(config))
    try:
        launch(blocks, config, port, logins)
        print(f"care chat is at {url_of(config.host, port)} until Ctrl-C.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:  # SIGTERM is one here too
        pass
    finally:
        blocks.close(verbose=False)


def launch(blocks: gr.Blocks, config: ChatConfig, port: int, logins: list[tuple[str, str]]) -> None:
    """Show a page at an address, without waiting for its end."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            auth=logins or None,
            max_file_size=config.limits.max_image_bytes,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css_paths=STYLE,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The page can't be shown at {url_of(config.host, port)} ({error}); pass another "
            "--host or --port, and see whether a proxy is set for this machine's own address."
        ) from error


def _head(answerer: Answerer) -> str:
    digest = answerer.defense.digest()
    told = f", digest {digest[:12]}" if digest else ""
    return (
        f'<div class="care-head"><h1>{escape(answerer.vlm.name)}</h1><span>bare, and repaired '
        f"by {escape(answerer.defense.name)}{told}</span></div>"
    )
