"""Two real photographs to test on, which the package scikit-learn ships beside its code."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def photograph(name: str = "china") -> Path:
    """Return the path of `china.jpg` or `flower.jpg`, both 640 x 427 pixels."""
    # Located, not imported: only the files beside the code are wanted.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("scikit-learn is not installed: it belongs to the dev extra")
    return Path(package.submodule_search_locations[0]) / "datasets" / "images" / f"{name}.jpg"
