"""A bank whose clients are under test, and what the servers have of it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from entityq.redis.connect import open_client
from tests.client.bank import Bank

SEARCH_PATH = "-c search_path=entityq"


@pytest.fixture
async def bank(postgres_url: str, redis_url: str, namespace: str) -> AsyncIterator[Bank]:
    """Its client is opened at its first use, and closed after the test."""
    bank = Bank(namespace, postgres_url, redis_url)
    async with bank.app:
        yield bank


@pytest.fixture
def outbox(postgres_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A session that is nobody's, in autocommit."""
    with psycopg.connect(postgres_url, autocommit=True, options=SEARCH_PATH) as connection:
        yield connection


@pytest.fixture
def stranger(postgres_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Another one, for transactions; rolled back at the end."""
    with psycopg.connect(postgres_url, options=SEARCH_PATH) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with open_client(redis_url) as client:
        yield client
