"""The bank behind Flask, in sync code. In two terminals: `entityq worker`, and `flask --app examples.flask_app run`.

    curl localhost:5000/accounts/a/deposits -H 'Idempotency-Key: r-1' --json '{"amount": 10}'

There is nothing to open or close: the first call starts a thread with the connections, in each process of
the web server anew, also after a fork; the interpreter's exit closes them.
"""

from flask import Flask, abort, request

from entityq import EntityDefect, EntityQError, MalformedMessage, PrimaryKeyConflict
from examples.bank import Account, InsufficientFunds, add

web = Flask(__name__)

Answer = dict[str, object]
Status = dict[type[Exception], int]
STATUS: Status = {InsufficientFunds: 402, PrimaryKeyConflict: 409, MalformedMessage: 422, EntityDefect: 500}


def amount_and_key() -> tuple[int, str]:
    key = request.headers.get("Idempotency-Key") or abort(400, "The header Idempotency-Key is missing.")
    return request.get_json().get("amount"), key  # entityq checks the amount


@web.post("/accounts/<account_id>/deposits")
def deposit(account_id: str) -> Answer:
    amount, key = amount_and_key()
    return {"balance": Account.at(account_id).deposit.call(amount, reference=key)}


@web.post("/accounts/<account_id>/withdrawals")
def withdraw(account_id: str) -> Answer:
    amount, key = amount_and_key()
    return {"balance": Account.at(account_id).withdraw.call(amount, reference=key)}


@web.get("/accounts/<account_id>")
def read(account_id: str) -> Answer:
    return {"balance": Account.at(account_id).read.call()}


@web.get("/sum/<int:x>/<int:y>")
def sum_of(x: int, y: int) -> Answer:
    receipt = add.delay(x, y)  # accepted: it will be done, whatever happens to this process
    return {"request": str(receipt.request_id), "sum": receipt.get(timeout=5)}


@web.errorhandler(InsufficientFunds)
@web.errorhandler(EntityQError)
def answer(error: Exception) -> tuple[Answer, int]:
    # 503: not answered in time; the same call with the same key is safe.
    return {"error": type(error).__name__, "detail": str(error)}, STATUS.get(type(error), 503)
