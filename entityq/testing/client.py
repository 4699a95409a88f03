"""The test client: the home of the handles and tasks that a test uses."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, Self, TypeVar, overload

from entityq.call import Call
from entityq.client.blocking import refuse_running_loop
from entityq.client.client_thread import ClientThread
from entityq.codec import Limits
from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq.entity import Entity, new_handle
from entityq.errors import EntityQError
from entityq.message import TypeMessage
from entityq.ports import Home, Sender
from entityq.request import Request, calls_of
from entityq.sent import Sent
from entityq.serializer import Serializer
from entityq.signal_outcome import SignalOutcome
from entityq.signal_value import encode_signal
from entityq.task import Task
from entityq.testing.in_process import InProcess

E = TypeVar("E", bound=Entity)
Other = TypeVar("Other", bound=Entity)
P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")

# Seconds: to start a thread.
OPEN_DEADLINE = 10.0

Member = type[Entity] | Task[..., Any, Any]


class InProcessClient(Generic[E]):
    """Use it with `async with`, or in sync code with `with`: the entities then run in a thread's event loop.

    Each one starts with nothing; its settings (limits, timeouts, serializer) are the app's.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._home = _common_home(members)
        self._definitions = {definition.type: definition for definition in map(_definition, members)}
        self._sender: InProcess | None = None
        self._thread: ClientThread | None = None

    @overload
    def at(self, entity_id: str) -> E: ...

    @overload
    def at(self, entity_id: str, cls: type[Other]) -> Other: ...

    def at(self, entity_id: str, cls: type[Entity] | None = None) -> Entity:
        """The handle of an entity, of the first class unless another one is given. Raises MalformedMessage."""
        chosen = cls or self._members[0]
        if isinstance(chosen, Task):
            raise TypeError(f"{chosen!r} has no entities: use client.task({chosen.definition.type})")
        return new_handle(chosen, entity_id, self)

    def task(self, task: Task[P, R, D]) -> Task[P, R, D]:
        """The task, sent through this client."""
        return task.at_home(self)

    async def send_many(self, requests: Iterable[Request[R]]) -> list[Sent[R]]:
        """As `app.send_many`, of requests made with handles and tasks of this client."""
        outcomes = await self.sender().send_many(calls_of(self, requests))
        return [Sent(outcome) for outcome in outcomes]

    def delay_many(self, requests: Iterable[Request[R]]) -> list[Sent[R]]:
        """The same in sync code."""
        outcomes = self.sender().blocking().send_many(calls_of(self, requests))
        return [Sent(outcome) for outcome in outcomes]

    def message(self, message: TypeMessage[P, R]) -> TypeMessage[P, R]:
        """A message of a class, as in `client.message(Account.read).broadcast()`, sent through this client."""
        return message.at_home(self)

    async def advance(self, seconds: float) -> None:
        """The test client's clock goes forward so many seconds: requests with an `eta` or a `delay` are delivered
        that are due then, and those that expire by then are not started any more."""
        await self.sender().advance(seconds)

    def advance_blocking(self, seconds: float) -> None:
        """The same in sync code."""
        self.sender().advance_blocking(seconds)

    async def signal(self, token: str, value: object = None) -> SignalOutcome:
        """As `app.signal`, of a token that was made in this client."""
        return await self.sender().signal(token, self._encoded_signal(value))

    def signal_blocking(self, token: str, value: object = None) -> SignalOutcome:
        """The same in sync code."""
        return self.sender().blocking().signal(token, self._encoded_signal(value))

    def _encoded_signal(self, value: object) -> bytes:
        return encode_signal(value, Limits(self.settings.max_payload))

    async def settle(self) -> None:
        """Waits until every request is answered that is due, those that turns have sent too. Raises SendTimeout."""
        await self.sender().settle()

    def settle_blocking(self) -> None:
        """The same in sync code."""
        self.sender().settle_blocking()

    # ----- Home

    @property
    def settings(self) -> Settings:
        return self._home.settings

    @property
    def serializer(self) -> Serializer:
        return self._home.serializer

    def new_id(self) -> int:
        return self._home.new_id()

    def sender(self) -> InProcess:
        if self._sender is None:
            raise EntityQError(
                "The test client is not open", advice="Use `async with testing.client(...) as client:`."
            )
        return self._sender

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> NoReturn:
        raise EntityQError(
            f"{call.message.name} to {call.address} cannot join a transaction: this test client has no Postgres",
            advice="Test it with real servers, or send it without a transaction.",
        )

    # ----- open and close

    async def __aenter__(self) -> Self:
        self._sender = await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sender, self._sender = self.sender(), None
        await sender.close()

    def __enter__(self) -> Self:
        refuse_running_loop()
        self._thread = ClientThread(self._open)
        self._sender = self._thread.run(_itself, OPEN_DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sender = None
        if self._thread is not None:
            self._thread.close()

    async def _open(self) -> InProcess:
        return await InProcess.open(self, self._definitions)


@overload
def client(entity: type[E], /, *others: Member) -> InProcessClient[E]: ...


@overload
def client(task: Task[..., Any, Any], /, *others: Member) -> InProcessClient[Entity]: ...


def client(first: Member, /, *others: Member) -> InProcessClient[Any]:
    """A test client for entity classes and tasks of one app, all that the test's turns send to included.

    Raises TypeError for what belongs to no app, or to several.
    """
    return InProcessClient((first, *others))


async def _itself(sender: Sender) -> Sender:
    return sender


def _definition(member: Member) -> EntityDefinition:
    if isinstance(member, Task):
        return member.definition
    definition: EntityDefinition | None = getattr(member, "__definition__", None)
    if definition is None or definition.cls is not member:
        raise TypeError(f"{member.__name__} belongs to no app: decorate it with @app.entity")
    return definition


def _common_home(members: Sequence[Member]) -> Home:
    for member in members:
        _definition(member)
    first, *others = [member.home if isinstance(member, Task) else member.__home__ for member in members]
    if any(home is not first for home in others):
        raise TypeError("a test client is for entities and tasks of one app")
    return first
