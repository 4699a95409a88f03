"""The example of limits, with a real worker."""

import json

from tests.support.processes import CommandLine

APP = ("-A", "examples.limited:app")


def test_each_of_its_messages_is_answered(entityq: CommandLine) -> None:
    worker = entityq.spawn("worker", *APP, "-c", "1")
    worker.wait_for(r"runner\.joined")
    for target, payload, answer in (
        (("send_mail",), {"to": "ann"}, '"sent to ann"'),
        (("render",), {"page": 4}, "40"),
        (("Customer/c-1", "call"), {}, "1"),
        (("Customer/c-1", "charge"), {"amount": 3}, "3"),
    ):
        sent = entityq.run("send", *APP, *target, "-k", json.dumps(payload), "--wait")
        assert (sent.code, sent.stdout.strip()) == (0, answer), sent.stderr
