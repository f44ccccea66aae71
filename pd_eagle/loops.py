"""Which event loop the front runs on, chosen here for the server and for `PDEngine` alike.

Left alone, asyncio takes uvloop in a process that has imported SGLang (0.5.23 sets its policy) and
its own loop elsewhere. It does not know what runs on it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging

logger = logging.getLogger(__name__)


def new_event_loop(name: str, *, may_be_forked: bool = False) -> asyncio.AbstractEventLoop:
    """Return a loop by PD_EVENT_LOOP: auto takes uvloop, which costs less a message, if installed.

    Not where the process `may_be_forked`: uvloop does not tell which files a child must close.
    """
    if name == "auto":
        takes_uvloop = not may_be_forked and importlib.util.find_spec("uvloop")
        name = "uvloop" if takes_uvloop else "asyncio"
    logger.info("event loop: %s", name)
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    import uvloop

    return uvloop.new_event_loop()
