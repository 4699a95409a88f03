"""The configuration: one frozen object, validated once, passed down.

EntityQ(...) arguments win over ENTITYQ_* variables, these over [tool.entityq] in the nearest
pyproject.toml, and that over the defaults. `Settings` is the one place that declares each setting: the
command line's help and docs/configuration.md are generated from it.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, cast

from entityq.errors import UnsafeConfiguration
from entityq.retention import SHORTEST_KEEP
from entityq.setting import Kind, choice, count, declared, duration, factor, flag, names, size, text, url

PREFIX = "ENTITYQ_"
MIB = 1024**2

# Variables of command line options that are no settings. Every process of an environment sees them, so they
# must be known here, where an unknown variable is refused.
COMMAND_VARIABLES = (
    "PROCESSES",
    "NAME",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "HEALTH_PORT",
    "ARGS",
    "KWARGS",
    "PRIMARY_KEY",
    "WAIT",
    "TIMEOUT",
    "ETA",
    "DELAY",
    "JSON",
    "PRINT",
    "GROUP",
    "NEW_SHARDS",
    "TYPE",
    "RESHARD_WAIT",
    "BATCH",
    "STATUS",
    "SINCE",
    "ERROR",
    "MOST",
    "ALL",
)

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_.-]{0,62}"
_NAMED = "a name of letters, digits, '_', '-' and '.', at most 63 and beginning with a letter"
_CONTENT_TYPE = r"[a-z][a-z0-9_-]*(\+[a-z0-9]+)?"
# kombu can speak these, but whoever can write to Redis or Postgres could run code in every process.
_UNSAFE_SERIALIZERS = {"pickle", "yaml"}


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are. Holds passwords: the repr masks them."""

    postgres_url: str
    lease_url: str
    redis_url: str

    def __repr__(self) -> str:
        return (
            f"Servers({masked_url(self.postgres_url)}, lease {masked_url(self.lease_url)}, "
            f"{masked_url(self.redis_url)})"
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """Durations are in seconds, sizes in bytes. Made by `Settings.load`; passwords are not in its repr."""

    postgres_url: str | None = declared(None, url("postgresql", "postgres"), "The database: the truth.")
    redis_url: str | None = declared(
        None, url("redis", "rediss", "unix"), "The accelerator, Redis or Valkey. Goes with postgres_url."
    )
    lease_url: str | None = declared(
        None,
        url("postgresql", "postgres"),
        "The same database without a pooler in between, for the connection that holds a runner's leases. "
        "Default: postgres_url.",
    )
    embedded: bool = declared(
        False,
        flag(),
        "Start a Postgres and a Valkey, in a per-user directory, when no URLs are given. To try it out.",
    )
    embedded_dir: str | None = declared(
        None,
        text(r"[/~].*", "an absolute path"),
        "The directory of the embedded servers. Default: the user's data directory, root's /var/lib/entityq.",
    )
    namespace: str = declared(
        "",
        text(_IDENTIFIER, _NAMED),
        "The cluster's name, in every key, row and lock. Default: the app's name.",
    )
    schema: str = declared(
        "entityq",
        text(
            r"(?!pg_)[a-z_][a-z0-9_]{0,62}", "a lower-case Postgres identifier that does not begin with pg_"
        ),
        "The Postgres schema of all tables.",
    )
    app: str | None = declared(
        None,
        text(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", "module:attribute, as in bank:app"),
        "The app of the command line, as module:attribute.",
    )
    shards: int = declared(
        100,
        count(1, 10_000),
        "Shards of each group. Read by the first `entityq migrate` of a namespace only.",
    )
    groups: tuple[str, ...] = declared(
        (),
        names(_IDENTIFIER, "names of shard groups"),
        "The shard groups that this runner serves. Default: all.",
    )
    weight: float = declared(1.0, factor(), "This runner's part of the shards, relative to the others.")
    lease_time: float = declared(
        5.0,
        duration(1),
        "How long this runner may be silent before another one evicts it. Runners of one cluster may differ: who "
        "looks at another one waits for the longer of the two.",
    )
    runner_health: str = declared(
        "ping",
        choice("ping", "k8s", "noop"),
        "How runners find out that one of them, alive, should not have shards: it does not answer on the "
        "control channel (ping), its pod is not ready (k8s), not at all (noop).",
    )
    kubernetes_selector: str = declared(
        "",
        text(r"[\x20-\x7e]*", "a label selector, as in app=bank,tier=worker"),
        "With runner_health k8s: the labels of the runners' pods. Default: all pods of the namespace.",
    )
    termination_time: float = declared(
        15.0, duration(0), "How long a stopping runner waits for its running turns."
    )
    sweep_interval: float = declared(
        5.0, duration(0.1), "How often a runner looks in the outbox for requests that nobody announced."
    )
    send_timeout: float = declared(10.0, duration(0.01), "How long a send waits for being accepted.")
    ask_timeout: float = declared(
        30.0,
        duration(0.01),
        "How long an ask waits for the reply when neither the call nor its message says.",
    )
    max_payload: int = declared(MIB, size(1024, 16 * MIB), "The largest encoded payload of a request.")
    max_state: int = declared(MIB, size(1024, 16 * MIB), "The largest encoded state of an entity.")
    max_reply: int = declared(MIB, size(1024, 16 * MIB), "The largest encoded reply.")
    max_pending: int = declared(
        1_000_000, count(), "Unanswered requests of a shard group, above which sends raise MailboxFull."
    )
    keep: float = declared(
        7 * 86_400.0,
        duration(SHORTEST_KEEP),
        "How long replies, and requests without a primary key, are kept after the reply, where the message does "
        "not say.",
    )
    keep_keys: float = declared(
        30 * 86_400.0,
        duration(SHORTEST_KEEP),
        "How long primary keys are kept after the reply, where the message does not say: a repeat gets "
        "ReplyExpired when the reply itself has gone.",
    )
    max_resident: int = declared(10_000, count(), "Entities that a runner keeps in memory.")
    max_turns: int = declared(1_000, count(), "Turns that a runner works on at once.")
    prefetch: int = declared(10_000, count(), "Requests that a runner has read and not yet answered.")
    threads: int = declared(32, count(), "Threads of a runner for handlers that are plain functions.")
    stream_length: int = declared(
        10_000,
        count(100),
        "Entries to which a shard's Redis stream is trimmed, roughly; Postgres has the rest.",
    )
    pool_size: int = declared(4, count(1, 1_000), "Postgres connections of a process, leases not counted.")
    serializer: str = declared(
        "msgpack",
        text(_CONTENT_TYPE, "a serializer, with or without a compression, as in msgpack or json+gzip"),
        "How payloads, replies and states are written: msgpack, or a serializer of kombu, + a compression.",
    )
    accept: tuple[str, ...] = declared(
        ("msgpack", "json"),
        names(_CONTENT_TYPE, "serializers"),
        "The serializers that are read. Never pickle.",
    )

    def __post_init__(self) -> None:
        unsafe = sorted(_UNSAFE_SERIALIZERS.intersection([_base(self.serializer), *map(_base, self.accept)]))
        if unsafe:
            raise UnsafeConfiguration(
                f"The serializer {unsafe[0]} can run code on reading.", advice="Use msgpack or json."
            )
        if _base(self.serializer) not in map(_base, self.accept):
            raise UnsafeConfiguration(
                f"serializer {self.serializer} is not one of accept ({', '.join(self.accept)}).",
                advice="Nobody could read what is sent: add it to accept.",
            )

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={shown}' for name, shown in self.shown().items())})"

    def shown(self) -> dict[str, str]:
        """Every setting as text that may be printed and logged."""
        return {
            setting.name: _shown(setting.kind, getattr(self, setting.name)) for setting in declared_settings()
        }

    def servers(self) -> Servers | None:
        """The configured servers; None where embedded ones are to be started.

        Raises UnsafeConfiguration for half a pair of URLs, and for none without `embedded`.
        """
        if self.postgres_url and self.redis_url:
            return Servers(self.postgres_url, self.lease_url or self.postgres_url, self.redis_url)
        given = [name for name in ("postgres_url", "lease_url", "redis_url") if getattr(self, name)]
        if given:
            missing = "redis_url" if self.postgres_url else "postgres_url"
            raise UnsafeConfiguration(
                f"A half-configured pair: {given[0]} is set and {missing} is not.",
                advice=f"Set {variable(missing)} too.",
            )
        if self.embedded:
            return None
        raise UnsafeConfiguration(
            "No servers are configured.",
            advice="Set ENTITYQ_POSTGRES_URL and ENTITYQ_REDIS_URL (or, to try it out, ENTITYQ_EMBEDDED=1).",
        )

    @classmethod
    def load(
        cls,
        namespace: str = "",
        overrides: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        start_directory: Path | None = None,
    ) -> Self:
        """Put together and checked, from the app's name (the default namespace) and its arguments.

        Raises UnsafeConfiguration for an unknown name or a value that does not fit, and says where it stands.
        """
        values: dict[str, object] = {}
        if namespace:
            values["namespace"] = _checked("namespace", namespace, f"EntityQ({namespace!r}): namespace")
        sources = (
            _from_pyproject(start_directory or Path.cwd()),
            _from_environment(os.environ if environ is None else environ),
            _from_arguments(overrides or {}),
        )
        for source in sources:
            for name, value, where in source:
                values[name] = _checked(name, value, where)
        return replace(cls(), **cast("dict[str, Any]", values))


@dataclass(frozen=True, slots=True)
class DeclaredSetting:
    """What people read about a setting: in `--help` and in docs/configuration.md."""

    name: str
    kind: Kind
    default: object
    help: str


def declared_settings() -> list[DeclaredSetting]:
    return [
        DeclaredSetting(field.name, field.metadata["kind"], field.default, field.metadata["help"])
        for field in fields(Settings)
    ]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def masked_url(address: str) -> str:
    """An address without its secrets: user information and unknown values of the query are left out.

    Works on malformed URLs too, because these are the ones that get printed: whatever stands before the last
    "@" goes, and all of it when it does not look like a URL.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        return "***"
    user, at, host = rest.rpartition("@")
    if "?" in user:  # a password with a question mark, or a query with an "@": nobody can tell
        return f"{scheme}://***"
    host, mark, query = host.partition("?")
    hidden = "&".join(_masked_pair(pair) for pair in query.split("&"))
    return f"{scheme}://{'***' if at else ''}{at}{host}{mark}{hidden if mark else ''}"


def _masked_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    if not equals:
        return "***"
    return pair if name in {"host", "port", "dbname", "db", "sslmode"} else f"{name}=***"


Source = Iterator[tuple[str, object, str]]


def _from_arguments(overrides: Mapping[str, object]) -> Source:
    for name, value in overrides.items():
        if value is not None:
            yield _known(name, f"EntityQ({name}=...)", str), value, f"EntityQ({name}=...)"


def _from_environment(environ: Mapping[str, str]) -> Source:
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in COMMAND_VARIABLES:
            continue
        known = _known(name.removeprefix(PREFIX).lower(), f"The variable {name}", variable)
        if value:  # set to nothing, as compose files do for "not set"
            yield known, value, name


def _from_pyproject(start_directory: Path) -> Source:
    for directory in (start_directory.resolve(), *start_directory.resolve().parents):
        file = directory / "pyproject.toml"
        if file.is_file():
            try:
                table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("entityq", {})
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise UnsafeConfiguration(f"Cannot read {file}: {error}") from None
            for name, value in table.items():
                where = f"{name} in [tool.entityq] of {file}"
                yield _known(name, where, str), value, where
            return


def _known(name: str, where: str, spell: Callable[[str], str]) -> str:
    known = [setting.name for setting in declared_settings()]
    if name in known:
        return name
    nearest = get_close_matches(name, known, n=1) or get_close_matches(name, known, n=1, cutoff=0)
    raise UnsafeConfiguration(f"{where} is no setting.", advice=f"Did you mean {spell(nearest[0])}?")


def _checked(name: str, value: object, where: str) -> object:
    kind = next(setting.kind for setting in declared_settings() if setting.name == name)
    try:
        return kind.parse(value)
    except ValueError as error:
        # Without the cause: it can hold the value, and the value can be a secret.
        raise UnsafeConfiguration(f"{where} {error}.") from None


def _shown(kind: Kind, value: object) -> str:
    if value is None:
        return "not set"
    return masked_url(str(value)) if kind.secret else kind.show(value)


def _base(content_type: str) -> str:
    return content_type.partition("+")[0]
