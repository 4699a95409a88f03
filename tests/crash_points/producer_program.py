"""A producer. Each order is a script, a list of steps; it reports what it sends before it sends it, what was
accepted, what was answered, and when the script is done."""

import asyncio
import logging
from typing import Any

from entityq import EntityQError
from entityq.errors import Accepted
from entityq.receipt import Receipt
from tests.crash_points.journals import Journal, app
from tests.crash_points.reporting import Reports, reporting
from tests.crash_points.script import Step

TRIES = 3


def main(report_to: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(name)s %(message)s")
    asyncio.run(_main(report_to))


async def _main(report_to: str) -> None:
    async with reporting(report_to) as reports:
        reports.say("ready")
        while (order := await reports.order()) is not None:
            receipts: list[tuple[str, Receipt[Any]]] = []
            for fields in order["script"]:
                for _ in range(TRIES):
                    if await _take(Step(**fields), receipts, reports):
                        break
            reports.say("done")
        await app.close()


async def _take(step: Step, receipts: list[tuple[str, Receipt[Any]]], reports: Reports) -> bool:
    """False when the request was not accepted, and is to be sent again."""
    try:
        if step.kind == "wait":
            for label, receipt in receipts:
                reports.say("answered", label=label, value=await receipt)
            receipts.clear()
            return True
        reports.say("sending", label=step.label)
        method: Any = getattr(Journal.at(step.entity), step.message)
        if step.kind == "ask":
            reports.say("answered", label=step.label, value=await method(**step.arguments))
        else:
            receipt = await method.send(**step.arguments)
            reports.say("accepted", label=step.label, request=receipt.request_id)
            receipts.append((step.label, receipt))
    except EntityQError as error:
        kind = "refused" if error.accepted is Accepted.NO else "failed"
        reports.say(kind, label=step.label, error=f"{type(error).__name__}: {error}")
        return kind == "failed"
    return True
