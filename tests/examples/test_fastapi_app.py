"""Through real HTTP, to a running worker."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.examples.conftest import Serve
from tests.support.processes import CommandLine, Running


def call(client: httpx.Client, path: str, amount: int, key: str) -> tuple[int, object]:
    response = client.post(path, json={"amount": amount}, headers={"Idempotency-Key": key})
    body: dict[str, object] = response.json()
    return response.status_code, body.get("balance", body.get("error"))


@pytest.fixture
def client(serve: Serve) -> httpx.Client:
    return serve("uvicorn", "examples.fastapi_app:api", "--port", "0")


@pytest.mark.usefixtures("worker")
def test_a_repeated_request_is_applied_once(client: httpx.Client) -> None:
    deposits, withdrawals = "/accounts/a/deposits", "/accounts/a/withdrawals"
    assert call(client, deposits, 10, "r-1") == (200, 10)
    assert call(client, deposits, 10, "r-1") == (200, 10)
    assert call(client, deposits, 11, "r-1") == (409, "PrimaryKeyConflict")
    assert call(client, withdrawals, 50, "r-2") == (402, "InsufficientFunds")
    assert call(client, withdrawals, 4, "r-3") == (200, 6)
    assert client.get("/accounts/a").json() == {"balance": 6}


@pytest.mark.usefixtures("worker")
def test_many_at_once(client: httpx.Client) -> None:
    def deposit(number: int) -> tuple[int, object]:
        return call(client, "/accounts/a/deposits", 1, f"r-{number % 50}")

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(deposit, range(100)))
    assert {status for status, _ in answers} == {200}
    assert client.get("/accounts/a").json() == {"balance": 50}


@pytest.mark.usefixtures("worker")
def test_what_does_not_fit_is_refused(client: httpx.Client) -> None:
    assert client.post("/accounts/a/deposits", json={"amount": 10}).status_code == 422
    assert call(client, "/accounts/a/deposits", -1, "r-1")[0] == 422
    assert call(client, f"/accounts/{'a' * 600}/deposits", 1, "r-1") == (422, "MalformedMessage")


def test_without_a_worker_the_request_is_kept(serve: Serve, entityq: CommandLine) -> None:
    client = serve("uvicorn", "examples.fastapi_app:api", "--port", "0", ENTITYQ_ASK_TIMEOUT="0.5")
    assert call(client, "/accounts/a/deposits", 10, "r-1") == (503, "RunnerUnavailable")
    worker = start_worker(entityq)
    assert until_answered(client) == (200, 10)
    assert client.get("/accounts/a").json() == {"balance": 10}
    worker.terminate()
    assert worker.wait().code == 0


def start_worker(entityq: CommandLine) -> Running:
    return entityq.spawn("worker", "-A", "examples.bank:app", "-c", "1")


def until_answered(client: httpx.Client) -> tuple[int, object]:
    """As a client would, with the same key."""
    for _ in range(20):
        status, balance = call(client, "/accounts/a/deposits", 10, "r-1")
        if status != 503:
            return status, balance
    raise AssertionError("no answer")
