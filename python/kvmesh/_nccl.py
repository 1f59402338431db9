"""Which NCCL a process has: that of torch, where torch brings one. A process has one libnccl.so.2, and
torch does not load where the system's older one was first."""

import ctypes
import importlib.util
import sys
from pathlib import Path


def _of_torch():
    """The libraries that torch would load."""
    try:
        found = importlib.util.find_spec("torch") and importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    folders = found.submodule_search_locations if found else []
    return [library for folder in folders for library in Path(folder).glob("lib/libnccl.so.2")]


if "torch" not in sys.modules:  # else it is there
    for _library in _of_torch():
        ctypes.CDLL(str(_library))
