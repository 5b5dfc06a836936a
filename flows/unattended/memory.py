"""Memory given back to the system between data versions, of which one process may run hundreds."""

import ctypes
import gc

from flows.graph.dvc_locks import close_project
from tasks.artifacts.stores import close_database


def give_back() -> None:
    """Close what is kept open and remembers each version, and give back what the C library keeps between blocks."""
    close_project()
    gc.collect()
    close_database()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
