"""What a worker shows when it starts."""

from collections.abc import Iterable

from entityq_cli.report import Loaded
from entityq_cli.worker_options import WorkerOptions, runner_name


def banner(loaded: Loaded, options: WorkerOptions) -> str:
    """Nothing in `loaded` is secret."""
    entities = [f"{type_}: {', '.join(messages)}" for type_, messages in loaded.entities.items()]
    lines = [
        f" entityq {loaded.version}",
        "",
        *_fact("app", [loaded.app]),
        *_fact("namespace", [loaded.namespace]),
        *(line for name, value in loaded.servers.items() for line in _fact(name, [value])),
        *_fact("processes", [_processes(options)]),
        *_fact("groups", [", ".join(loaded.groups) or "all"]),
        *_fact("entities", entities),
        *_fact("tasks", loaded.tasks),
        *_fact("schedules", loaded.schedules),
        *_fact("singletons", loaded.singletons),
        "",
    ]
    return "\n".join(lines)


def _processes(options: WorkerOptions) -> str:
    first, last = runner_name(options.name, 1), runner_name(options.name, options.processes)
    each = "one for each core: " if options.one_each_core else ""
    names = first if options.processes == 1 else f"{first} to {last}"
    return f"{options.processes} ({each}{names})"


def _fact(name: str, values: Iterable[str]) -> Iterable[str]:
    """A line for each value, the name before the first one."""
    for place, value in enumerate(values):
        yield f"   {'' if place else name:<11}{value}"
