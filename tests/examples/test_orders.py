"""As a process of its own, with a worker."""

import sys

import pytest

from tests.support.processes import CommandLine


@pytest.mark.usefixtures("worker")
def test_an_order_and_its_payment(entityq: CommandLine, postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    ended = entityq.spawn_program([sys.executable, "-m", "examples.orders"], env={"DATABASE_URL": url}).wait()
    assert (ended.code, ended.stdout) == (0, "[100, 100]\n70\n"), ended
