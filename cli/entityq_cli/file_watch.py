"""Which Python files below a directory have changed."""

import os
from collections.abc import Mapping
from pathlib import Path

_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})

Snapshot = Mapping[Path, int]


def snapshot(directory: Path) -> Snapshot:
    """When each .py file was changed, in ns; hidden directories and virtual environments are left out."""
    found: dict[Path, int] = {}
    for root, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in _SKIPPED and not name.startswith(".")]
        if "pyvenv.cfg" in files:
            directories.clear()
            continue
        for path in (Path(root, name) for name in files if name.endswith(".py")):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # an editor's temporary file
    return found


def changed_file(before: Snapshot, after: Snapshot) -> Path | None:
    """A file that was changed, added or removed; None when there is none."""
    return min((file for file, _ in before.items() ^ after.items()), default=None)
