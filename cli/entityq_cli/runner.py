"""`entityq runner`, hidden: one runner of a worker, in a process of its own."""

import asyncio
import faulthandler
import gc
import logging
import signal
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import cast

import click

from entityq import EntityQ, UnsafeConfiguration
from entityq.config import Settings, masked_url
from entityq.schedules import Schedules
from entityq.singleton import Singletons
from entityq_cli.app_loading import load_app
from entityq_cli.exit_code import CommandError, ExitCode, usage_error
from entityq_cli.link import Link
from entityq_cli.log_format import configure_logging
from entityq_cli.refusal import one_sentence
from entityq_cli.report import Loaded, Refused
from entityq_cli.serving import Served
from entityq_cli.stop_orders import end_on_signals, end_within

_new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop as _new_event_loop
except ImportError:  # not made for every platform
    from asyncio import new_event_loop as _new_event_loop

log = logging.getLogger(__name__)

# Seconds that Python and its exit handlers have after the last task.
_EXIT_SECONDS = 3.0


@click.command("runner", hidden=True)
@click.option("--app")
@click.option("--groups")
@click.option("--name", required=True)
@click.option("--place", required=True)
@click.option("--index", type=int, required=True)
@click.option("--link", "descriptor", type=int, required=True)
@click.option("--log-level", required=True)
@click.option("--log-format", required=True)
@click.option("--migrate", is_flag=True)
def command(
    *,
    app: str | None,
    groups: str | None,
    name: str,
    place: str,
    index: int,
    descriptor: int,
    log_level: str,
    log_format: str,
    migrate: bool,
) -> None:
    """Started by `entityq worker` alone."""
    end_on_signals()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    configure_logging(f"runner-{index}", level=log_level, style=log_format)
    link = Link(descriptor)
    try:
        with one_sentence():
            loaded = load_app(app)
            chosen = _chosen_groups(loaded, groups)
            link.send(_facts(loaded, app, chosen))
            # What the imports left behind lives as long as the process: no collection need look at it again.
            gc.collect()
            gc.freeze()
            served = Served(loaded, name=name, place=place, groups=chosen, link=link, migrate=migrate)
            code = _serve(served)
    except CommandError as error:
        link.send(Refused(error.sentence, error.code))
        code = error.code
    except Exception as error:
        log.exception("runner.crashed", exc_info=_innermost(error))
        code = ExitCode.FAILED
    end_within(_EXIT_SECONDS, code)
    raise SystemExit(code)


def _serve(served: Served) -> ExitCode:
    try:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            return runner.run(served.run())
    except* UnsafeConfiguration as group:
        raise _innermost(group) from None


def _innermost(error: BaseException) -> BaseException:
    """Task groups wrap what ended them; the traceback of the error itself is what people need."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def _chosen_groups(app: EntityQ, given: str | None) -> tuple[str, ...]:
    """Empty stands for all. Raises CommandError for a group that no type of the app is in."""
    chosen = Settings.load(overrides={"groups": given}).groups if given else app.settings.groups
    known = sorted({definition.shard_group for definition in app.definitions.values()})
    for group in chosen:
        if group not in known:
            raise usage_error(
                f"No entity type of the app is in shard group {group}: it has {', '.join(known)}."
            )
    return chosen


def _facts(app: EntityQ, specification: str | None, groups: Sequence[str]) -> Loaded:
    settings = app.settings
    servers = settings.servers()
    if servers is None:
        shown = {"servers": "embedded PostgreSQL and Valkey"}
    else:
        shown = {"postgres": masked_url(servers.postgres_url), "redis": masked_url(servers.redis_url)}
        if servers.lease_url != servers.postgres_url:
            shown["leases"] = masked_url(servers.lease_url)
    return Loaded(
        version=version("entityq"),
        app=specification or settings.app or app.name,
        namespace=settings.namespace,
        servers=shown,
        groups=list(groups),
        entities={
            type_: [name for name in definition.messages if not name.startswith("$")]
            for type_, definition in app.definitions.items()
            if not definition.stateless and not issubclass(definition.cls, Schedules | Singletons)
        },
        tasks=[type_ for type_, definition in app.definitions.items() if definition.stateless],
        schedules=list(app.cron.names),
        singletons=list(app.singleton.names),
    )
