"""What was found out about an entity type and its messages: plain values that everything else works with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from entityq.address import Address
from entityq.errors import EntityQError
from entityq.limit import UNLIMITED, Limit
from entityq.retention import AS_SETTINGS_SAY, Retention
from entityq.retry import HANDLER_RETRY, RetryPolicy
from entityq.schema import UNREAD, PayloadSchema, StateSchema, ValueSchema

# System messages begin with "$", so that no user's message can have their name.
FORGET = "$forget"


class Role(Enum):
    """What an instance of an entity class is."""

    HANDLE = "handle"
    ACTIVATION = "activation"
    READ_ONLY = "read-only activation"


class HeadOfLine(Enum):
    """What the messages of an entity do that are behind one in backoff: wait, so that the order is kept, or go on."""

    BLOCK = "block"
    PARK = "park"


class Activation(Protocol):
    """What a runner sees of an entity in its memory."""

    async def on_activate(self) -> None: ...

    async def on_deactivate(self) -> None: ...


ActivationClass = type[Activation]


@dataclass(frozen=True, slots=True, eq=False)
class MessageDefinition:
    """`handler` is called with the activation and the arguments by name; `timeout` and `time_limit` are in seconds.

    `chunk`: of a message that streams, what its handler yields; its reply is how many chunks there were.
    """

    name: str
    handler: Callable[..., Any] = field(repr=False)
    is_async: bool
    payload: PayloadSchema = field(repr=False)
    reply: ValueSchema = field(repr=False)
    persisted: bool = True
    concurrent: bool = False
    timeout: float | None = None
    time_limit: float | None = None
    primary_key: str | None = None
    retention: Retention = AS_SETTINGS_SAY
    retry: RetryPolicy | None = None
    uninterruptible: bool = False
    transactional: bool = False
    limit: Limit = UNLIMITED
    chunk: ValueSchema | None = field(default=None, repr=False)

    @property
    def values(self) -> ValueSchema:
        """What its handler yields. Raises EntityQError for a message with one reply."""
        if self.chunk is None:
            raise EntityQError(f"{self.name} does not stream", advice="Ask for its reply.")
        return self.chunk

    @property
    def changes_state(self) -> bool:
        """Whether its turns may change durable fields; all others get a read-only copy."""
        return self.persisted and not self.concurrent


@dataclass(frozen=True, slots=True, eq=False)
class EntityDefinition:
    """`messages` by name, system messages included; `max_idle` is in seconds; tasks are stateless.

    `retry`: of messages that have no policy of their own.
    """

    type: str
    cls: ActivationClass = field(repr=False)
    state: StateSchema = field(repr=False)
    messages: Mapping[str, MessageDefinition] = field(repr=False)
    shard_group: str = "default"
    mailbox_capacity: int = 100
    max_idle: float = 300.0
    concurrency: int = 1
    stateless: bool = False
    retry: RetryPolicy = HANDLER_RETRY
    head_of_line: HeadOfLine = HeadOfLine.BLOCK
    limit: Limit = UNLIMITED

    def parks(self, message: MessageDefinition) -> bool:
        """Whether a request steps aside while it is in backoff: nothing behind it has to wait."""
        return self.stateless or message.concurrent or self.head_of_line is HeadOfLine.PARK

    def policy(self, message: MessageDefinition) -> RetryPolicy:
        """Of the message's defects."""
        return self.retry if message.retry is None else message.retry

    def new_activation(
        self, entity_id: str, values: Mapping[str, object], *, read_only: bool = False
    ) -> Activation:
        """An entity with these values, which it takes over; `on_activate` is not called."""
        activation = object.__new__(self.cls)
        place(activation, Address(self.type, entity_id), Role.READ_ONLY if read_only else Role.ACTIVATION)
        self.restore(activation, values)
        return activation

    def restore(self, activation: Activation, values: Mapping[str, object]) -> None:
        """Puts the durable fields back to `values`, which it takes over."""
        live = vars(activation)
        live.pop(UNREAD, None)
        live.update(values)

    def values_of(self, activation: Activation) -> dict[str, object]:
        """The live durable values by name; nothing is copied."""
        live = vars(activation)
        return {name: live[name] for name in self.state.fields}


def place(entity: object, address: Address, role: Role) -> None:
    """Makes a bare instance of an entity class a handle or an activation."""
    vars(entity).update(__address__=address, __role__=role)
