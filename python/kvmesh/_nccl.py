"""Loads the NCCL that torch brings, if it brings one. A process has one libnccl.so.2, and torch fails to
load if the system's older one was loaded first."""

import ctypes
import importlib.util
import sys
from pathlib import Path


def _of_torch():
    """Returns the libraries that torch would load."""
    try:
        found = importlib.util.find_spec("torch") and importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    folders = found.submodule_search_locations if found else []
    return [library for folder in folders for library in Path(folder).glob("lib/libnccl.so.2")]


if "torch" not in sys.modules:  # torch has loaded it otherwise
    for _library in _of_torch():
        ctypes.CDLL(str(_library))
