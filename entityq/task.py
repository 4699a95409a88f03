"""A plain function as a stateless entity: each call goes to an id of its own."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, overload

from entityq.address import Address
from entityq.call import task_address
from entityq.definition import EntityDefinition
from entityq.message import BoundMessage
from entityq.ports import Home
from entityq.receipt import Receipt
from entityq.registration import TASK_MESSAGE
from entityq.request import Request

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")  # what a direct call returns: R, or a coroutine


class Task(Generic[P, R, D]):
    """A function that workers can run. Calling it runs it here, as in Celery; the verbs send it."""

    def __init__(self, function: Callable[P, D], definition: EntityDefinition, home: Home) -> None:
        self.definition = definition
        self._function = function
        self._home = home
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> D:
        return self._function(*args, **kwargs)

    async def ask(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Waits for the reply. Raises the function's Failure, or an EntityQError."""
        return await self._message()(*args, **kwargs)

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Returns when the request is accepted; `await` the receipt for the reply."""
        return await self._message().send(*args, **kwargs)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Waits for the reply, from sync code."""
        return self._message().call(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Sends, from sync code."""
        return self._message().delay(*args, **kwargs)

    def request(self, *args: P.args, **kwargs: P.kwargs) -> Request[R]:
        """Not sent yet: for `app.send_many`, and for a transaction of the caller's own (entityq.integrations)."""
        return self._message().request(*args, **kwargs)

    def options(
        self,
        *,
        timeout: float | None = None,
        primary_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        eta: datetime | None = None,
        delay: float | timedelta | None = None,
        expires: float | timedelta | datetime | None = None,
    ) -> BoundMessage[P, R]:
        """The task as a message with these options; calling that asks."""
        return self._message().options(
            timeout=timeout, primary_key=primary_key, headers=headers, eta=eta, delay=delay, expires=expires
        )

    @property
    def home(self) -> Home:
        return self._home

    def at_home(self, home: Home) -> "Task[P, R, D]":
        """The same task, sent through `home`."""
        return Task(self._function, self.definition, home)

    def __repr__(self) -> str:
        return f"<task {self.definition.type}>"

    def _message(self) -> BoundMessage[P, R]:
        message = self.definition.messages[TASK_MESSAGE]
        return BoundMessage(self.definition, message, self._home, self._locate)

    def _locate(self, primary_key: str | None) -> Address:
        return task_address(self.definition.type, primary_key, self._home.new_id)


class TaskDecorator:
    """What `@app.task(...)` with arguments returns."""

    def __init__(self, new_task: Callable[[Callable[..., Any]], Task[..., Any, Any]]) -> None:
        self._new_task = new_task

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...

    def __call__(self, function: Callable[..., Any], /) -> Task[..., Any, Any]:
        return self._new_task(function)
