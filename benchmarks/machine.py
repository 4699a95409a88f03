"""What a figure was measured on, and how it is printed."""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psycopg


def describe(postgres_url: str) -> str:
    """Machine, versions and the command, as the first lines of every benchmark."""
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    packages = ("entityq", "psycopg", "redis", "msgpack", "pydantic", "uvloop")
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), current_setting('fsync')"
        ).fetchone()
    server, fsync = row or ("unknown", "unknown")
    return "\n".join(
        (
            f"machine   {os.cpu_count()} cores, {cpu}, {platform.system()} {platform.release()}",
            f"python    {platform.python_version()}",
            "packages  " + ", ".join(f"{name} {version(name)}" for name in packages),
            f"postgres  {server}, fsync {fsync}",
            f"command   python {' '.join(sys.orig_argv[1:])}",
        )
    )


def spread(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Median with minimum and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} {unit} (min {low:,.{digits}f}, max {high:,.{digits}f}, {len(values)} runs)"
