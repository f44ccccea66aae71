"""Which event loop the front runs on, chosen here for the server and for `PDEngine` alike.

Left alone, asyncio takes uvloop in a process that has imported SGLang (0.5.23 sets its policy) and
its own loop elsewhere. It does not know what runs on it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging

logger = logging.getLogger(__name__)


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a loop by EVENT_LOOP: auto takes uvloop, which costs less a message, if installed."""
    if name == "auto":
        name = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    logger.info("event loop: %s", name)
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    import uvloop

    return uvloop.new_event_loop()
