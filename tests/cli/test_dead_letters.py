"""`entityq dead-letters` and `entityq requeue`."""

import json
import re

from tests.cli.test_inspect import send
from tests.cli.workers import BANK, start_worker
from tests.support.processes import CommandLine
from tests.support.servers import connected

CAUSE = {
    "type": "ValueError",
    "message": "no ledger",
    "traceback": ["bank.py:1 in deposit: raise"],
    "cause": {"type": "KeyError", "message": "'x'"},
}


def test_listed_shown_requeued_and_discarded(entityq: CommandLine, postgres_url: str) -> None:
    start_worker(entityq)
    request_id = send(entityq, "deposit", "--wait")
    with connected(postgres_url) as sql:
        # As a defect would have left it.
        sql.execute(
            "INSERT INTO entityq.dead_letter"
            " (request_id, namespace, type, entity_id, message, attempts, error_type, error, cause)"
            " SELECT request_id, namespace, 'Account', 'a', 'deposit', 5, 'ValueError', 'no ledger', %s"
            " FROM entityq.outbox, entityq.cluster",
            [json.dumps(CAUSE)],
        )

    listed = entityq.run("dead-letters", "list", "--error", "LEDGER", "--type", "Account", "-j").json()
    (letter,) = listed["dead_letters"]
    assert (letter["request_id"], letter["address"], letter["attempts"]) == (request_id, "Account/a", 5)
    text = entityq.run("dead-letters", "list", "--since", letter["died_at"]).stdout
    assert re.search(rf"^{request_id} .* ValueError: no ledger$", text, re.MULTILINE)
    assert entityq.run("dead-letters", "list", "--since", "2100-01-01", "-j").json() == {"dead_letters": []}

    shown = entityq.run("-A", BANK, "dead-letters", "show", request_id).stdout
    assert "ValueError: no ledger\n  bank.py:1 in deposit: raise\nraised from:\n  KeyError: 'x'\n" in shown
    assert entityq.run("dead-letters", "show", request_id, "-j").json()["dead_letters"][0]["cause"] == CAUSE

    assert entityq.run("dead-letters", "requeue").code == 2
    requeued = entityq.run("requeue", request_id, "4711", "-j")
    assert requeued.code == 1
    assert requeued.json() == {"requeued": [request_id], "refused": {"4711": "it is no dead letter"}}
    assert "Request 4711 was not requeued: it is no dead letter." in requeued.stderr
    again = entityq.run(
        "send", "-A", BANK, "Account/a", "deposit", "-k", '{"amount": 5, "reference": "r1"}', "--wait"
    )
    assert again.stdout == "10\n"
    assert entityq.run("dead-letters", "discard", request_id).code == 1
    assert entityq.run("dead-letters", "requeue", "--all").stdout == ""
    assert re.search(
        r"^handled +requeued .* by .+@.+$",
        entityq.run("dead-letters", "show", request_id).stdout,
        re.MULTILINE,
    )
