"""A message whose handler yields: its reply is a stream of values, each stored before the caller gets it."""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Generic, Never, NoReturn, ParamSpec, Self, TypeVar

from entityq.address import Address
from entityq.call import Call, CallOptions, new_call
from entityq.cancel_outcome import CancelOutcome
from entityq.context import current_turn, sender_for
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.errors import EntityQError
from entityq.message import changed_options
from entityq.ports import Home, Sender
from entityq.receipt import Receipt

P = ParamSpec("P")
R = TypeVar("R")


class StreamReceipt(Generic[R]):
    """Of an accepted request that streams. `await receipt` waits for its end, and gives the count of its values.

    `duplicate` says that its primary key was known: the values are those of the first one.
    """

    __slots__ = ("_call", "_receipt", "_sender")

    def __init__(self, receipt: Receipt[int], sender: Sender, call: Call) -> None:
        self._receipt = receipt
        self._sender = sender
        self._call = call

    @property
    def request_id(self) -> int:
        return self._receipt.request_id

    @property
    def address(self) -> Address:
        return self._receipt.address

    @property
    def duplicate(self) -> bool:
        return self._receipt.duplicate

    def __await__(self) -> Generator[Any, None, int]:
        return self._receipt.__await__()

    async def cancel(self) -> CancelOutcome:
        """As `Receipt.cancel`: the stream ends with Interrupted, behind the values that are stored."""
        return await self._receipt.cancel()

    async def stream(self, *, after: int = 0) -> AsyncGenerator[R, None]:
        """All values from the first on, or but for the first `after`, as often as wanted.

        Raises the entity's Failure, or an EntityQError, behind the last value where the stream has ended so, and
        SendTimeout when none comes within the call's timeout.
        """
        async with aclosing(self._sender.stream(self._call, self.request_id, after)) as values:
            async for value in values:
                yield value


class BoundStream(Generic[P, R]):
    """A message of one entity that streams. Every way of sending raises MalformedMessage or PayloadTooLarge."""

    __slots__ = ("_address", "_entity", "_home", "_message", "_options")

    def __init__(
        self,
        entity: EntityDefinition,
        message: MessageDefinition,
        home: Home,
        address: Address,
        options: CallOptions | None = None,
    ) -> None:
        self._entity = entity
        self._message = message
        self._home = home
        self._address = address
        self._options = CallOptions() if options is None else options

    async def stream(self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[R, None]:
        """Sends it, and gives its values as they come. Raises as `StreamReceipt.stream`."""
        if current_turn.get() is not None:
            raise EntityQError(
                f"{self._address} cannot be asked to stream {self._message.name} inside of a turn",
                advice="Send it, and let it send its values, or ask for a list.",
            )
        receipt = await self.send(*args, **kwargs)
        async with aclosing(receipt.stream()) as values:
            async for value in values:
                yield value

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> StreamReceipt[R]:
        """Returns when the request is accepted; its handler runs whether or not somebody reads."""
        sender, call = sender_for(self._home), self._new_call(args, kwargs)
        return StreamReceipt(await sender.send(call), sender, call)

    def __call__(self, *args: Never, **kwargs: Never) -> NoReturn:
        """Raises TypeError: there is no one reply."""
        raise TypeError(
            f"{self._entity.type}.{self._message.name} streams: write "
            f"`async for value in entity.{self._message.name}.stream(...)`, or use send"
        )

    def options(
        self,
        *,
        timeout: float | None = None,
        primary_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        eta: datetime | None = None,
        delay: float | timedelta | None = None,
        expires: float | timedelta | datetime | None = None,
    ) -> Self:
        """The same message with these options, which are those of other messages (`BoundMessage.options`).

        timeout: how long the caller waits for each next value, in seconds.
        """
        changed = changed_options(
            self._options,
            timeout=timeout,
            primary_key=primary_key,
            headers=headers,
            eta=eta,
            delay=delay,
            expires=expires,
        )
        return type(self)(self._entity, self._message, self._home, self._address, changed)

    def _new_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call:
        return new_call(
            self._entity,
            self._message,
            lambda _: self._address,
            args=args,
            kwargs=kwargs,
            options=self._options,
            serializer=self._home.serializer,
        )
