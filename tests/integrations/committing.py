"""A program for the tests: it sends in a transaction, says so, and waits to be killed before the commit."""

import os
import signal
import sys

import psycopg

from entityq import Entity, EntityQ, message
from entityq.integrations.psycopg import send

app = EntityQ("committing")


@app.entity
class Probe(Entity):
    @message
    async def note(self, text: str) -> None:
        raise NotImplementedError


with psycopg.connect(os.environ["ENTITYQ_POSTGRES_URL"]) as connection:
    send(connection, Probe.at("a").note.request("never committed"))
    sys.stdout.write("sent\n")
    sys.stdout.flush()
    signal.pause()
