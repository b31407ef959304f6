"""Requests of Inspect to a model of this package."""

from __future__ import annotations

import anyio


def asked(batches, items, settings=lambda item: None):
    """The results (or errors) of all items, asked at once."""
    results = {}

    async def one(item):
        try:
            results[item] = await batches.ask(settings(item), item)
        except Exception as error:
            results[item] = error

    async def everything():
        async with anyio.create_task_group() as group:
            for item in items:
                group.start_soon(one, item)

    anyio.run(everything)
    return [results[item] for item in items]
