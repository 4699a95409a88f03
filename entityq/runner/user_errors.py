"""What code of users may raise without taking the runner with it."""

import asyncio

# A handler that calls sys.exit must not end the process, and the next owner's after it. A CancelledError can
# come from a task that the handler itself awaited: see `raise_if_cancelled`.
USER_ERRORS = (Exception, SystemExit, asyncio.CancelledError)


def raise_if_cancelled(error: BaseException) -> None:
    """Raises `error` again when it is the cancellation of the running task, which is ours and not the user's."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
