"""The points that are known: `points.txt`, and the statements that are at none of them: `exempt.txt`."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from tests.crash_points.point import Point

POINTS = Path(__file__).with_name("points.txt")
EXEMPT = Path(__file__).with_name("exempt.txt")

_HEAD = """\
# Every point of every scenario: "?" marks one that not every run comes to.
# Written by `make crash-points ARGS=--record`.
"""


def encode(recorded: Mapping[str, tuple[Iterable[Point], Iterable[Point]]]) -> str:
    """By scenario, its sure points and the others."""
    lines: list[str] = []
    for scenario, (sure, sometimes) in recorded.items():
        lines.append(f"\n{scenario}\n")
        marked = [(point, " ") for point in sure] + [(point, "?") for point in sometimes]
        lines += [f"  {mark} {point}\n" for point, mark in sorted(marked)]
    return _HEAD + "".join(lines)


def listed(text: str) -> dict[str, dict[str, bool]]:
    """By scenario, its points as texts, with whether every run comes to them."""
    scenarios: dict[str, dict[str, bool]] = {}
    points: dict[str, bool] = {}
    for line in text.splitlines():
        if line.startswith("    "):
            points[line[4:]] = True
        elif line.startswith("  ? "):
            points[line[4:]] = False
        elif line and not line.startswith("#"):
            points = scenarios[line] = {}
    return scenarios


def exempt(text: str, statements: Iterable[str]) -> dict[str, str]:
    """The reason by statement; a line is `file.statement  reason` or `file.*  reason`."""
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        pattern, _, reason = line.partition(" ")
        if pattern and pattern != "#":
            matching = [name for name in statements if fnmatchcase(name, pattern)] or [pattern]
            reasons |= dict.fromkeys(matching, reason.strip())
    return reasons
