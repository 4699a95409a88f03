"""The example of docs/streaming.md: in a test client, and on workers that are killed."""

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from entityq import testing
from examples.reports import Report, app
from tests.promises.cluster import open_cluster
from tests.support.processes import CommandLine

PAGES = 300


@pytest.fixture
def entityq(postgres_url: str, redis_url: str, namespace: str, tmp_path: Path) -> Iterator[CommandLine]:
    configuration = {
        "ENTITYQ_POSTGRES_URL": postgres_url,
        "ENTITYQ_REDIS_URL": redis_url,
        "ENTITYQ_NAMESPACE": namespace,
        "ENTITYQ_LEASE_TIME": "3",
    }
    with CommandLine(configuration, tmp_path) as command_line:
        yield command_line


async def test_in_a_test_client() -> None:
    async with testing.client(Report) as client:
        report = client.at("r")
        pages = [page async for page in report.pages.stream("june", 3)]
        assert pages == ["june, page 1", "june, page 2", "june, page 3"]
        receipt = await report.pages.send("june", 3)
        assert (await receipt, receipt.duplicate) == (3, True)
        assert [page async for page in receipt.stream(after=2)] == ["june, page 3"]
        assert await report.how_many() == 1


async def test_two_workers_are_killed_and_the_reader_sees_neither_gap_nor_repeat(
    entityq: CommandLine, postgres_url: str, redis_url: str, namespace: str
) -> None:
    async with open_cluster(app, postgres_url, redis_url, namespace) as cluster:
        sending = await cluster.client()
        worker = entityq.spawn("worker", "-A", "examples.reports:app", "-c", "1", "-n", "w0")
        worker.wait_for(r"runner\.joined")
        pages: list[str] = []
        async with aclosing(sending.at(Report, "r").pages.stream("june", PAGES)) as values:
            async for page in values:
                pages += [page]
                if len(pages) in (60, 150):
                    worker.kill()
                    worker = entityq.spawn(
                        "worker", "-A", "examples.reports:app", "-c", "1", "-n", f"w{len(pages)}"
                    )
        assert pages == [f"june, page {number}" for number in range(1, PAGES + 1)]
        assert await sending.at(Report, "r").how_many() == 1
