"""`make demo`: a short conversation with the bank of `examples/bank.py`, on real servers and two runners.

Everything that is printed was just computed; nothing is acted.
"""

import asyncio
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import psutil

from entityq import EntityQError, PrimaryKeyConflict
from examples.bank import Account, InsufficientFunds, add, app

STOP_DEADLINE = 20.0


def step(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(call: str, outcome: object) -> None:
    print(f"    {call}\n        -> {outcome}", flush=True)


def entityq(command: str) -> psutil.Popen:
    """As in a terminal of its own."""
    return psutil.Popen([sys.executable, "-m", "entityq_cli", *command.split()])


@contextmanager
def worker() -> Generator[psutil.Popen]:
    """Stopped as a deploy would stop it."""
    process = entityq("worker -A examples.bank:app -c 2 -l critical")
    try:
        yield process
    finally:
        process.terminate()
        process.wait(STOP_DEADLINE)


async def one_account(name: str) -> None:
    account = Account.at(name)

    step("1. A deposit: committed in Postgres, processed by one of the runners, answered.")
    show('await account.deposit(10, reference="r-1")', await account.deposit(10, reference="r-1"))

    step("2. The same again, as a client does that never saw the reply. It gets the first reply.")
    show('await account.deposit(10, reference="r-1")', await account.deposit(10, reference="r-1"))
    show("await account.read()", f"{await account.read()}   (counted once)")

    step("3. The same reference with another amount is refused.")
    try:
        await account.deposit(99, reference="r-1")
    except PrimaryKeyConflict as conflict:
        show('await account.deposit(99, reference="r-1")', f"PrimaryKeyConflict: {conflict}")

    step("4. A failure is typed, and changes nothing.")
    try:
        await account.withdraw(1_000, reference="r-2")
    except InsufficientFunds as failure:
        show('await account.withdraw(1_000, reference="r-2")', repr(failure))
    show("await account.read()", await account.read())


def deposits(name: str, repeats: int) -> list[asyncio.Task[int]]:
    """A thousand deposits of 1 to a hundred accounts, each sent so many times with the same reference."""
    return [
        asyncio.create_task(Account.at(f"{name}-{number % 100}").deposit(1, reference=f"r-{number}"))
        for _ in range(repeats)
        for number in range(1_000)
    ]


async def total(name: str) -> int:
    return sum(await asyncio.gather(*(Account.at(f"{name}-{number}").read() for number in range(100))))


async def many_accounts(name: str, runner: psutil.Process) -> None:
    step("5. A thousand deposits to a hundred accounts at once, each sent twice.")
    started = time.perf_counter()
    await asyncio.gather(*deposits(name, repeats=2))
    seconds = time.perf_counter() - started
    show("sum of the balances", f"{await total(name)}   (2,000 requests in {seconds:.2f} s)")

    step(
        f"6. A thousand more. At the first reply, one of the two runners, process {runner.pid}, is killed (-9)."
    )
    started = time.perf_counter()
    more = deposits(f"{name}-more", repeats=1)
    await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
    runner.kill()
    unanswered = sum(not deposit.done() for deposit in more)
    await asyncio.gather(*more)
    seconds = time.perf_counter() - started
    show(
        "sum of the balances",
        f"{await total(f'{name}-more')}   ({unanswered} were under way; all answered after {seconds:.2f} s)",
    )


async def conversation(process: psutil.Popen) -> None:
    async with app:
        await add.ask(0, 0)  # answered: the first runner is there
        name = f"demo-{app.new_id()}"
        await one_account(name)
        await many_accounts(name, process.children()[0])

        step("7. A plain task, as in Celery.")
        show("await add.ask(2, 3)", await add.ask(2, 3))


def main() -> None:
    """Raises EntityQError."""
    with app.start_servers():
        step("$ entityq migrate && entityq worker -A examples.bank:app -c 2")
        if entityq("migrate").wait() != 0:
            sys.exit("The demo failed.")
        with worker() as process:
            asyncio.run(conversation(process))
            step("8. Stopping: the runners finish what they do, give up their shards and leave.")
    step("Done. The accounts stay in Postgres; the servers stop when nobody uses them.")


if __name__ == "__main__":
    try:
        main()
    except EntityQError as error:
        sys.exit(f"The demo failed: {error}")
