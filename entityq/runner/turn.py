"""One turn: from a decoded request to a reply, a state and the requests that it sends.

    decode -> invoke -> encode

Nothing here touches a server; what comes out is committed elsewhere, or never.
"""

import asyncio
import contextvars
import functools
import logging
from collections.abc import Generator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from entityq.codec import Limits
from entityq.definition import Activation as Instance
from entityq.definition import MessageDefinition
from entityq.errors import EntityDefect, EntityQError, Interrupted, MalformedMessage
from entityq.failure import Failure
from entityq.replies import defect_reply, failure_reply, success_reply
from entityq.reply import Reply
from entityq.runner.chunk_writer import ChunksLost, ChunkWriter
from entityq.runner.defect import Defect, is_lasting
from entityq.runner.request import Request
from entityq.runner.time_limit import limited, limited_thread
from entityq.runner.turn_signals import Suspended, suspended
from entityq.runner.user_errors import USER_ERRORS, raise_if_cancelled
from entityq.serializer import Serializer

log = logging.getLogger(__name__)

# Characters of an error's text in a reply: a chain of asks that fails quotes all of them.
MAX_QUOTED = 1_000


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Sizes (bytes) of what a turn writes."""

    reply: Limits
    state: Limits


def handler_defect(
    request: Request, error: BaseException, limits: TurnLimits, *, lasting: bool = False
) -> Defect:
    """The caller learns the type of a user's error, and what an error of ours says; the log has the rest."""
    log.error(
        "turn.defect request=%s entity=%s message=%s attempt=%s: %r",
        request.request_id,
        request.envelope.address,
        request.envelope.message,
        request.attempt,
        error,
        exc_info=error,
    )
    envelope = request.envelope
    text = f"{envelope.address} raised {type(error).__name__} while handling {envelope.message!r}"
    if isinstance(error, EntityQError):
        text += f": {error.what[:MAX_QUOTED]}"
    reply = defect_reply(request.request_id, EntityDefect, f"{text}; its state is unchanged", limits.reply)
    return Defect(error, reply, lasting or is_lasting(error))


def interrupted(request: Request, limits: TurnLimits) -> Reply:
    """Of a request that was cancelled when it had a turn."""
    envelope = request.envelope
    text = f"{envelope.message} to {envelope.address} was cancelled while it ran: nothing of it was applied"
    return defect_reply(request.request_id, Interrupted, text, limits.reply)


def expired(request: Request, limits: TurnLimits) -> Reply:
    """Of a request whose turn comes too late."""
    envelope = request.envelope
    text = f"{envelope.message} to {envelope.address} has expired: it was not started in time"
    return defect_reply(request.request_id, Interrupted, text, limits.reply)


def swallowed(request: Request, result: Reply | Defect, name: str, limits: TurnLimits) -> Defect:
    """Of a handler that did not let the end of its attempt through, and came to something else."""
    error = EntityQError(
        f"{request.envelope.address} waits for the signal {name!r}, and its handler caught what ends the attempt",
        advice="Catch Exception, not BaseException, around wait_for; await it in the handler itself.",
    )
    error.__cause__ = result.error if isinstance(result, Defect) else None
    return handler_defect(request, error, limits, lasting=True)


@contextmanager
def interruptible(request: Request, message: MessageDefinition) -> Generator[None]:
    """While its handler runs in it, a cancel of the request is a cancellation of the running task.

    A thread cannot be interrupted: its handler is let run to its end, so that no other turn begins before.
    """
    task = asyncio.current_task()
    if task is None or not message.is_async or message.uninterruptible:
        yield
        return
    request.interruptible = task
    try:
        yield
    finally:
        request.interruptible = None
        if request.cancelled:
            # It was for the handler: what follows must run, and must notice when the life of the runner ends.
            task.uncancel()


def decode_arguments(
    request: Request, message: MessageDefinition, serializer: Serializer, limits: TurnLimits
) -> dict[str, object] | Defect:
    """The checked arguments; a payload that does not fit is a defect that lasts."""
    envelope, schema = request.envelope, message.payload
    try:
        return schema.read(serializer.decode(envelope.payload, envelope.content_type, schema.what))
    except EntityQError as error:
        reply = defect_reply(request.request_id, MalformedMessage, error.what, limits.reply)
        return Defect(error, reply, lasting=True)


async def invoke(
    request: Request,
    instance: Instance,
    message: MessageDefinition,
    arguments: Mapping[str, object],
    *,
    threads: Executor,
    chunks: ChunkWriter | None,
) -> object:
    """Run the handler: on the loop when it is async, otherwise in a thread with the same context.

    Raises what the handler raises, TimeLimitExceeded, and what `ChunkWriter.collect` does.
    """
    if chunks is not None:
        return await limited(chunks.collect(message.handler(instance, **arguments)), message.time_limit)
    if message.is_async:
        return await limited(message.handler(instance, **arguments), message.time_limit)
    call = functools.partial(message.handler, instance, **arguments)
    context = contextvars.copy_context()
    running = asyncio.get_running_loop().run_in_executor(threads, context.run, call)
    return await limited_thread(running, message.time_limit, request)


async def perform(
    request: Request,
    instance: Instance,
    message: MessageDefinition,
    *,
    threads: Executor,
    serializer: Serializer,
    limits: TurnLimits,
    chunks: ChunkWriter | None = None,
) -> Reply | Defect:
    """A success, a failure or a defect; `chunks` takes what a handler yields.

    Cancellation from outside goes through, Suspended and ChunksLost.
    """
    arguments = decode_arguments(request, message, serializer, limits)
    if isinstance(arguments, Defect):
        return arguments
    if request.cancelled:
        return interrupted(request, limits)
    result = await _handled(request, instance, message, arguments, chunks, threads=threads, limits=limits)
    return result if _stands(request, message) else interrupted(request, limits)


async def _handled(
    request: Request,
    instance: Instance,
    message: MessageDefinition,
    arguments: Mapping[str, object],
    chunks: ChunkWriter | None,
    *,
    threads: Executor,
    limits: TurnLimits,
) -> Reply | Defect:
    try:
        with interruptible(request, message):
            value = await invoke(request, instance, message, arguments, threads=threads, chunks=chunks)
        return success_reply(request.request_id, value, message, limits.reply)
    except Failure as failure:
        return _failed(request, failure, limits)
    except ChunksLost:
        raise
    except (Suspended, BaseExceptionGroup) as error:
        if suspended(error):
            if request.cancelled:
                return interrupted(request, limits)
            raise Suspended from None
        if isinstance(error, Exception):
            return handler_defect(request, error, limits)
        raise
    except USER_ERRORS as error:
        raise_if_cancelled(error)
        if request.cancelled and isinstance(error, asyncio.CancelledError):
            return interrupted(request, limits)
        return handler_defect(request, error, limits)


def _stands(request: Request, message: MessageDefinition) -> bool:
    """Whether what a handler came to is its reply: also when it was interrupted, and chose to end otherwise."""
    return not request.cancelled or message.is_async or message.uninterruptible


def _failed(request: Request, failure: Failure, limits: TurnLimits) -> Reply | Defect:
    try:
        return failure_reply(request.request_id, failure, limits.reply)
    except EntityQError as error:
        return handler_defect(request, error, limits)
