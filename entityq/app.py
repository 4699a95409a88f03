"""The composition root: registry, configuration, and the one place that knows concrete implementations."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from entityq.address import Address
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.client import Client
from entityq.client.clients import Clients
from entityq.codec import Limits
from entityq.config import Servers, Settings
from entityq.context import sender_for
from entityq.cron import Cron
from entityq.dead_letters import DeadLetters
from entityq.definition import EntityDefinition
from entityq.entity import Entity
from entityq.limit import MaxRunning, RateLimit
from entityq.ports import Sender
from entityq.postgres.connect import Connection, connect
from entityq.receipt import Receipt
from entityq.registration import EntityOptions, TaskOptions, define_entity, define_task
from entityq.request import Request, calls_of
from entityq.retention import Duration
from entityq.retry import HANDLER_RETRY, RetryPolicy
from entityq.runner.opening import open_runner
from entityq.runner.runner import Runner
from entityq.sent import Sent
from entityq.serializer import Serializer
from entityq.servers import AppServers
from entityq.signal_outcome import SignalOutcome
from entityq.signal_value import encode_signal
from entityq.singleton import SingletonDecorator
from entityq.snowflake import Snowflakes, client_machine
from entityq.task import Task, TaskDecorator

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Entity)


class EntityQ:
    """`name` is the cluster's namespace unless a setting says otherwise; `overrides` are settings by name."""

    def __init__(self, name: str, *, settings: Settings | None = None, **overrides: object) -> None:
        self.name = name
        self._given_settings = settings
        self._overrides = overrides
        self._definitions: dict[str, EntityDefinition] = {}
        self._runner: Runner | None = None
        self._servers = AppServers(lambda: self.settings)
        self._kept: Servers | None = None
        self._keeping = threading.Lock()

    @property
    def settings(self) -> Settings:
        """Read at first use: importing a module with an app needs no servers. Raises UnsafeConfiguration."""
        return self._settings

    @property
    def definitions(self) -> Mapping[str, EntityDefinition]:
        """By entity type; a task's type is its name."""
        return MappingProxyType(self._definitions)

    @property
    def serializer(self) -> Serializer:
        """Of payloads. Raises UnsafeConfiguration at first use."""
        return self._serializer

    def new_id(self) -> int:
        """A new request id: unique in the cluster, roughly in the order of time."""
        return self._snowflakes.new()

    # ----- batches

    async def send_many(self, requests: Iterable[Request[R]]) -> list[Sent[R]]:
        """Many in one transaction, in their order; in a turn, in the turn's. One outcome for each, in order.

            await app.send_many([account.deposit.request(10, reference="r-1"), add.request(2, 3)])

        A primary key that is known, also from earlier in the batch, is that one's outcome. Raises MalformedMessage
        for a volatile message, PayloadTooLarge above 10,000 requests or 32 MiB, MailboxFull, PersistenceError,
        SendTimeout: then none of them is accepted, or it is unknown, as the error says.
        """
        outcomes = await sender_for(self).send_many(calls_of(self, requests))
        return [Sent(outcome) for outcome in outcomes]

    def delay_many(self, requests: Iterable[Request[R]]) -> list[Sent[R]]:
        """`send_many` from sync code."""
        outcomes = sender_for(self).blocking().send_many(calls_of(self, requests))
        return [Sent(outcome) for outcome in outcomes]

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> Receipt[Any]:
        """Of a request that the caller's own transaction stores; used by entityq.integrations."""
        return self._clients.receipt(call, request_id, duplicate=duplicate)

    # ----- cancelling

    async def cancel(self, request_id: int) -> CancelOutcome:
        """As `receipt.cancel()`, for a request of anybody. Raises EntityQError for one that is not known."""
        return await sender_for(self).cancel(request_id)

    def cancel_blocking(self, request_id: int) -> CancelOutcome:
        """`cancel` from sync code."""
        return sender_for(self).blocking().cancel(request_id)

    # ----- signals

    async def signal(self, token: str, value: object = None) -> SignalOutcome:
        """The value of the signal that a handler has made this token for, whether it waits already or will later.

        It is stored when this returns, and only the first one counts. The value is what a reply may be; the handler
        checks it when it waits. Raises MalformedMessage for a forged token, PayloadTooLarge, PersistenceError when
        Postgres does not answer: then it is to be sent again.
        """
        return await sender_for(self).signal(token, encode_signal(value, Limits(self.settings.max_payload)))

    def signal_blocking(self, token: str, value: object = None) -> SignalOutcome:
        """`signal` from sync code."""
        encoded = encode_signal(value, Limits(self.settings.max_payload))
        return sender_for(self).blocking().signal(token, encoded)

    # ----- servers, clients and runners

    def sender(self) -> Sender:
        """The client, used outside of turns; it connects at its first use."""
        return self._clients

    @asynccontextmanager
    async def open_client(self) -> AsyncGenerator[Client, None]:
        """A client of its own, connected. Raises UnsafeConfiguration, PersistenceError."""
        client = await self._open_client()
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def open_runner(
        self, *, name: str, groups: Sequence[str] = (), place: str = ""
    ) -> AsyncGenerator[Runner, None]:
        """A runner that is ready to `run` in this process; `groups` empty: the settings' or all.

        `place`: a text that it shares with the runner that it replaces, and with no other; it gets its shards.

        Raises UnsafeConfiguration for what could lose or double work, and PersistenceError when Postgres
        cannot be reached. Redis may be down.
        """
        settings = self.settings
        with self.start_servers() as servers:
            async with (
                self.open_client() as client,
                open_runner(
                    settings,
                    servers,
                    self.definitions,
                    client,
                    self.serializer,
                    name=name,
                    groups=groups or settings.groups,
                    place=place,
                ) as runner,
            ):
                self._runner = runner
                try:
                    yield runner
                finally:
                    self._runner = None

    async def is_local(self, entity_type: type[Entity], entity_id: str) -> bool:
        """Whether a runner in this process holds the entity's shard, so that a call need not leave it."""
        runner = self._runner
        return runner is not None and runner.holds(Address(entity_type.__definition__.type, entity_id))

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """Requests that were given up: `await app.dead_letters(type="Account")`, `.requeue(id)`, `.discard(id)`."""
        return DeadLetters(self._connect, lambda: self.settings.namespace)

    @cached_property
    def cron(self) -> Cron:
        """Schedules: `@app.cron("*/5 * * * *")` above `@app.task`; `await app.cron.at("report").pause()`."""
        return Cron(self, self._register)

    @cached_property
    def singleton(self) -> SingletonDecorator:
        """Functions of which one runs in the cluster: `@app.singleton` or `@app.singleton(name=...)`."""
        return SingletonDecorator(self._register)

    @asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Connection, None]:
        servers = await asyncio.to_thread(self._keep_servers)
        async with await connect(servers.postgres_url, schema=self.settings.schema) as connection:
            yield connection

    def start_servers(self) -> AbstractContextManager[Servers]:
        """The configured servers; embedded ones where the settings ask for them, for as long as the context.

        Blocks while they start. Raises UnsafeConfiguration without servers.
        """
        return self._servers.use()

    async def __aenter__(self) -> Self:
        """Optional: connections are opened at their first use. `async with app` closes them at its end."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the running loop's client; the next use opens another one."""
        await self._clients.close()

    def close_blocking(self) -> None:
        """Close the client of sync code; the next use opens another one. The interpreter's exit does it too."""
        self._clients.close_blocking()

    @cached_property
    def _clients(self) -> Clients:
        return Clients(self._open_client, lambda: self.settings)

    def _keep_servers(self) -> Servers:
        """Embedded servers of clients, which may be opened again at any time, run until the process ends."""
        with self._keeping:
            if self._kept is None:
                self._kept = ExitStack().enter_context(self.start_servers())
            return self._kept

    async def _open_client(self) -> Client:
        servers = await asyncio.to_thread(self._keep_servers)
        return await Client.open(self.settings, servers, self.definitions)

    @cached_property
    def _settings(self) -> Settings:
        return self._given_settings or Settings.load(self.name, self._overrides)

    @cached_property
    def _serializer(self) -> Serializer:
        settings = self.settings
        return Serializer(settings.serializer, frozenset(settings.accept), Limits(settings.max_payload))

    @cached_property
    def _snowflakes(self) -> Snowflakes:
        return Snowflakes(client_machine())

    @overload
    def entity(self, cls: type[E], /) -> type[E]: ...

    @overload
    def entity(
        self,
        /,
        *,
        type: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 100,
        max_idle: float = 300.0,
        concurrency: int = 1,
        state_version: int = 1,
        retry: RetryPolicy = HANDLER_RETRY,
        head_of_line: Literal["block", "park"] = "block",
        rate_limit: RateLimit | str | None = None,
        max_running: MaxRunning | int | None = None,
    ) -> Callable[[type[E]], type[E]]: ...

    def entity(
        self,
        cls: type[E] | None = None,
        /,
        *,
        type: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 100,
        max_idle: float = 300.0,
        concurrency: int = 1,
        state_version: int = 1,
        retry: RetryPolicy = HANDLER_RETRY,
        head_of_line: Literal["block", "park"] = "block",
        rate_limit: RateLimit | str | None = None,
        max_running: MaxRunning | int | None = None,
    ) -> type[E] | Callable[[type[E]], type[E]]:
        """Makes a subclass of Entity an entity type of this app. Raises TypeError for what cannot work.

        type: its name in addresses, by default the class's name.
        shard_group: the shards, and so the workers, that it lives on.
        mailbox_capacity: requests that one entity keeps waiting in memory.
        max_idle: seconds without a request after which an entity leaves memory.
        concurrency: how many messages declared `concurrent` one entity processes at once.
        state_version: raised when what is stored changes its meaning; each older version needs an `@upcast`.
        retry: how often, and when, its messages run again after a defect.
        head_of_line: what the messages behind one that waits for its next attempt do: "block" (wait, so that
            the order is kept) or "park" (go on; the one that failed comes later).
        rate_limit, max_running: of all of its messages together, as for `@message`.
        """
        options = EntityOptions(
            type,
            shard_group,
            mailbox_capacity,
            max_idle,
            concurrency,
            state_version,
            retry=retry,
            head_of_line=head_of_line,
            rate_limit=rate_limit,
            max_running=max_running,
        )
        return partial(self._add_entity, options) if cls is None else self._add_entity(options, cls)

    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        primary_key: str | None = None,
        persisted: bool = True,
        timeout: float | None = None,
        time_limit: float | None = None,
        keep: Duration | None = None,
        keep_keys: Duration | None = None,
        retry: RetryPolicy = HANDLER_RETRY,
        uninterruptible: bool = False,
        rate_limit: RateLimit | str | None = None,
        max_running: MaxRunning | int | None = None,
    ) -> TaskDecorator: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        primary_key: str | None = None,
        persisted: bool = True,
        timeout: float | None = None,
        time_limit: float | None = None,
        keep: Duration | None = None,
        keep_keys: Duration | None = None,
        retry: RetryPolicy = HANDLER_RETRY,
        uninterruptible: bool = False,
        rate_limit: RateLimit | str | None = None,
        max_running: MaxRunning | int | None = None,
    ) -> Task[..., Any, Any] | TaskDecorator:
        """Makes a function a task of this app. Raises TypeError for what cannot work.

        name: its name in addresses, by default the function's name.
        primary_key: the parameter that makes a call known: a repeat gets the first reply.
        persisted, timeout, time_limit, keep, keep_keys, uninterruptible, rate_limit, max_running: as for `@message`.
        retry: how often, and when, it runs again after a defect.
        """
        options = TaskOptions(
            name,
            shard_group,
            primary_key,
            persisted,
            timeout,
            time_limit,
            keep=keep,
            keep_keys=keep_keys,
            retry=retry,
            uninterruptible=uninterruptible,
            rate_limit=rate_limit,
            max_running=max_running,
        )
        decorator = TaskDecorator(partial(self._add_task, options))
        return decorator if function is None else self._add_task(options, function)

    def _add_entity(self, options: EntityOptions, cls: type[E]) -> type[E]:
        definition = define_entity(cls, options)
        self._register(definition)
        cls.__definition__ = definition
        cls.__home__ = self
        return cls

    def _add_task(self, options: TaskOptions, function: Callable[..., Any]) -> Task[..., Any, Any]:
        definition = define_task(function, options)
        self._register(definition)
        task: Task[..., Any, Any] = Task(function, definition, self)
        return task

    def _register(self, definition: EntityDefinition) -> None:
        if definition.type in self._definitions:
            raise TypeError(f"the app {self.name} already has an entity type or task {definition.type}")
        self._definitions[definition.type] = definition
