"""`make crash-points`: every point of every scenario, with every fault."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from entityq.embedded import start_temporary
from tests.crash_points.cluster import open_cluster
from tests.crash_points.listed import POINTS, encode
from tests.crash_points.scenario import SCENARIOS, Scenario
from tests.crash_points.sweep import Sweep, Swept, table
from tests.crash_points.visit import FAULTS
from tests.support.servers import migrate_database

NAMESPACE = "crash-points"
RECORDED_RUNS = 5


def main() -> int:
    arguments = _arguments()
    with start_temporary() as servers, tempfile.TemporaryDirectory(prefix="eqc") as directory:
        migrate_database(servers.postgres_url, NAMESPACE)
        return asyncio.run(_run(arguments, servers.postgres_url, servers.redis_url, Path(directory)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make crash-points ARGS=...")
    parser.add_argument("--scenario", choices=[scenario.name for scenario in SCENARIOS], action="append")
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--only", default="", help="points whose description contains this")
    parser.add_argument("--occurrences", type=int, default=3, help="times that each point is visited")
    parser.add_argument("--record", action="store_true", help="write points.txt, visit none")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, postgres_url: str, redis_url: str, directory: Path) -> int:
    chosen = [each for each in SCENARIOS if not arguments.scenario or each.name in arguments.scenario]
    async with open_cluster(postgres_url, redis_url, NAMESPACE, directory) as cluster:
        sweep = Sweep(cluster, sys.stderr.write)
        if arguments.record:
            return await _record(sweep)
        sweeps = [swept for scenario in chosen for swept in await _sweep(sweep, scenario, arguments)]
    print(table(sweeps))
    problems = [problem for swept in sweeps for problem in (*swept.missed, *swept.violations)]
    print(*problems, sep="\n")
    return 1 if problems else 0


async def _record(sweep: Sweep) -> int:
    recorded = {scenario.name: await sweep.record(scenario, RECORDED_RUNS) for scenario in SCENARIOS}
    POINTS.write_text(encode({name: (each.sure, each.sometimes) for name, each in recorded.items()}))
    return 0


async def _sweep(sweep: Sweep, scenario: Scenario, arguments: argparse.Namespace) -> list[Swept]:
    recorded = await sweep.record(scenario)
    points = [each for each in recorded.occurrences(arguments.occurrences) if arguments.only in str(each[0])]
    maybe = [point for point in sorted(recorded.sometimes) if arguments.only in str(point)]
    return [await sweep.sweep(scenario, fault, points, maybe) for fault in arguments.fault or FAULTS]


if __name__ == "__main__":
    sys.exit(main())
