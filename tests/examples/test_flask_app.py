"""Through real HTTP, to a running worker."""

import httpx
import pytest

from tests.examples.conftest import Serve
from tests.examples.test_fastapi_app import call


@pytest.fixture
def client(serve: Serve) -> httpx.Client:
    return serve("flask", "--app", "examples.flask_app", "run", "--port", "0")


@pytest.mark.usefixtures("worker")
def test_a_repeated_request_is_applied_once(client: httpx.Client) -> None:
    deposits, withdrawals = "/accounts/a/deposits", "/accounts/a/withdrawals"
    assert call(client, deposits, 10, "r-1") == (200, 10)
    assert call(client, deposits, 10, "r-1") == (200, 10)
    assert call(client, deposits, 11, "r-1") == (409, "PrimaryKeyConflict")
    assert call(client, withdrawals, 50, "r-2") == (402, "InsufficientFunds")
    assert client.get("/accounts/a").json() == {"balance": 10}


@pytest.mark.usefixtures("worker")
def test_a_task(client: httpx.Client) -> None:
    assert client.get("/sum/2/3").json()["sum"] == 5


@pytest.mark.usefixtures("worker")
def test_what_does_not_fit_is_refused(client: httpx.Client) -> None:
    answer = client.post("/accounts/a/deposits", json={"amount": "ten"}, headers={"Idempotency-Key": "r-1"})
    assert (answer.status_code, answer.json()["error"]) == (422, "MalformedMessage")
    assert client.post("/accounts/a/deposits", json={"amount": 10}).status_code == 400
