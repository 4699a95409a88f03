"""The limits that a runner shares with others, or has for itself, as gates."""

from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from entityq.address import lock_class
from entityq.limit import MaxRunning, RateLimit
from entityq.postgres.membership import Member
from entityq.redis.breaker import Breaker
from entityq.redis.control import ControlChannel, ControlMessage
from entityq.redis.rates import SharedRates
from entityq.runner.gates import Gate, LocalRate, LocalRunning, SharedRate, SharedRunning
from entityq.runner.gcra import Pace
from entityq.runner.permits import Permits, Session

# Of control messages: "limit" is what it is about, "word" is "wanted" or "free", "runner" says it.
KIND = "permits"

Start = Callable[[Coroutine[Any, Any, None], str], object]


class SharedGates:
    """Of one incarnation.

    Args:
        members: the live runners.
        start: begins a task of the incarnation.
    """

    def __init__(
        self,
        me: int,
        session: Session,
        rates: SharedRates,
        control: ControlChannel,
        *,
        schema: str,
        namespace: str,
        members: Callable[[], Collection[Member]],
        start: Start,
    ) -> None:
        self._me = me
        self._session = session
        self._rates = rates
        self._control = control
        self._schema = schema
        self._namespace = namespace
        self._members = members
        self._start = start
        self._breaker = Breaker(name="redis.rates", instead="each runner keeps to its share of the limits")
        self._permits: dict[str, Permits] = {}

    def rate(self, name: Sequence[str], limit: RateLimit) -> Gate:
        """`name`: of the type, and of the message or empty."""
        pace = Pace(limit.interval, limit.together)
        if limit.scope == "runner":
            return LocalRate(pace)
        return SharedRate(
            "/".join(name), pace, self._rates, self._breaker, sharers=lambda: max(1, self._sharers(name[0]))
        )

    def running(self, name: Sequence[str], limit: MaxRunning) -> Gate:
        """As `rate`."""
        if limit.scope == "runner":
            return LocalRunning(limit.count)
        key = "/".join(name)
        # Frozen: runners of all versions share the locks.
        class_ = lock_class(self._schema, self._namespace, "permit", key)
        others = _Others(self._control, self._start, key, self._me, lambda: self._sharers(name[0]))
        self._permits[key] = Permits(class_, limit.count, self._session, others, start=self._start)
        return SharedRunning(self._permits[key])

    def heard(self, message: ControlMessage) -> None:
        """Called by the control channel."""
        fields = message.fields
        if message.kind != KIND or fields.get("runner") == self._me:
            return
        permits = self._permits.get(str(fields.get("limit")))
        if permits is not None:
            permits.hear(str(fields.get("word")))

    def _sharers(self, entity_type: str) -> int:
        return sum(entity_type in member.types and not member.draining for member in self._members())


class _Others:
    """The other runners, for one limit."""

    def __init__(
        self, control: ControlChannel, start: Start, key: str, me: int, sharers: Callable[[], int]
    ) -> None:
        self._control = control
        self._start = start
        self._key = key
        self._me = me
        self._sharers = sharers

    def all_hear(self) -> bool:
        return self._control.subscribed.is_set()

    def exist(self) -> bool:
        return self._sharers() > 1

    def tell(self, word: str) -> None:
        fields = {"limit": self._key, "word": word, "runner": self._me}
        self._start(self._tell(ControlMessage(KIND, fields)), "permits told")

    async def _tell(self, message: ControlMessage) -> None:
        await self._control.publish(message)
