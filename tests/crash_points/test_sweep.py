"""A fault at each point between "send called" and "reply acknowledged". All of them: `make crash-points`."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash_points.cluster import open_cluster
from tests.crash_points.listed import POINTS, listed
from tests.crash_points.scenario import SCENARIOS
from tests.crash_points.sweep import Sweep, table


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a short path: sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="eqc") as path:
        yield Path(path)


@pytest.mark.timeout(400)
async def test_a_process_that_dies_or_loses_a_connection_anywhere_on_the_send_path(
    postgres_url: str, redis_url: str, namespace: str, directory: Path
) -> None:
    scenario = SCENARIOS[0]
    async with open_cluster(postgres_url, redis_url, namespace, directory) as cluster:
        sweep = Sweep(cluster, sys.stdout.write)
        recorded = await sweep.record(scenario)
        points = list(recorded.occurrences(1))
        # One of the two at each point, in turns for what comes before a step and after it: both take minutes.
        killed = [point for place, point in enumerate(points) if (place + place // 2) % 2 == 0]
        lost = [point for point in points if point not in killed]
        sweeps = [
            await sweep.sweep(scenario, "kill", killed),
            await sweep.sweep(scenario, "drop", lost),
        ]
    sys.stdout.write(table(sweeps))
    assert [problem for swept in sweeps for problem in (*swept.violations, *swept.missed)] == []
    known = listed(POINTS.read_text())[scenario.name]
    new = {str(point) for point in recorded.sure} - set(known)
    assert not new, "unlisted points, see `make crash-points ARGS=--record`"
    come = {str(point) for point in sweep.seen[scenario.name]}
    assert not {point for point, sure in known.items() if sure} - come, "points that are no more"
