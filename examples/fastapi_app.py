"""The bank behind FastAPI. In two terminals: `entityq worker`, and `uvicorn examples.fastapi_app:api`.

    curl localhost:8000/accounts/a/deposits -H 'Idempotency-Key: r-1' --json '{"amount": 10}'

Run it twice: the account gets the money once, and both calls the same answer.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, PositiveInt

from entityq import EntityDefect, EntityQError, MalformedMessage, PrimaryKeyConflict
from examples.bank import Account, InsufficientFunds, app

Status = dict[type[Exception], int]
STATUS: Status = {InsufficientFunds: 402, PrimaryKeyConflict: 409, MalformedMessage: 422, EntityDefect: 500}


class Amount(BaseModel):
    amount: PositiveInt


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with app:  # connects at the first use; this closes the connections at the end
        yield


async def answer(_: Request, error: Exception) -> JSONResponse:
    # 503: not answered in time; the same call with the same key is safe.
    status = STATUS.get(type(error), 503)
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, status)


api = FastAPI(lifespan=lifespan, exception_handlers={InsufficientFunds: answer, EntityQError: answer})

# What makes the call known: a repeat of the HTTP request is a repeat of the message.
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


@api.post("/accounts/{account_id}/deposits")
async def deposit(account_id: str, body: Amount, key: Key) -> dict[str, int]:
    return {"balance": await Account.at(account_id).deposit(body.amount, reference=key)}


@api.post("/accounts/{account_id}/withdrawals")
async def withdraw(account_id: str, body: Amount, key: Key) -> dict[str, int]:
    return {"balance": await Account.at(account_id).withdraw(body.amount, reference=key)}


@api.get("/accounts/{account_id}")
async def read(account_id: str) -> dict[str, int]:
    return {"balance": await Account.at(account_id).read()}
