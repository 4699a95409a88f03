"""Tells the schedules of acquired shards what this runner's code says about them."""

import asyncio

from entityq.address import Address
from entityq.call import Call, CallOptions, new_call
from entityq.definition import EntityDefinition
from entityq.errors import EntityQError
from entityq.outage import Outage
from entityq.runner.resources import Resources
from entityq.schedules import Schedules

PAUSE_AFTER_FAILURE = 1.0
# Requests of one transaction.
AT_ONCE = 1_000


class Declarations:
    """Of one incarnation. The one who owns a schedule decides what it is, so every new owner declares it."""

    def __init__(self, resources: Resources) -> None:
        self._declared = {
            Address(definition.type, name): definition
            for definition in resources.definitions.values()
            if issubclass(definition.cls, Schedules)
            for name in definition.cls.declared()
        }
        self._facts = resources.current_facts
        self._sender = resources.client
        self._serializer = resources.serializer
        self._shards: set[int] = set()
        self._acquired = asyncio.Event()
        self._outage = Outage("cron.undeclared", "cron.declared_again", "schedules go on as they are")

    def acquired(self, shard_id: int) -> None:
        self._shards.add(shard_id)
        self._acquired.set()

    async def run(self) -> None:
        while True:
            await self._acquired.wait()
            self._acquired.clear()
            shards, self._shards = self._shards, set()
            calls = [
                self._call(address, definition)
                for address, definition in self._declared.items()
                if self._facts.shard_id(address) in shards
            ]
            try:
                for start in range(0, len(calls), AT_ONCE):
                    await self._sender.send_many(calls[start : start + AT_ONCE])
            except EntityQError as error:
                self._outage.failed(error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)
                self._shards |= shards
                self._acquired.set()
            else:
                self._outage.worked()

    def _call(self, address: Address, definition: EntityDefinition) -> Call:
        return new_call(
            definition,
            definition.messages["declare"],
            lambda _: address,
            args=(),
            kwargs={},
            options=CallOptions(),
            serializer=self._serializer,
        )
