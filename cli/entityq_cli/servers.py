"""Where the servers of a command are: configured, or embedded."""

from collections.abc import Generator
from contextlib import contextmanager

from entityq.config import Servers, Settings
from entityq.embedded import start


@contextmanager
def open_servers(settings: Settings) -> Generator[Servers]:
    """Embedded ones run at least as long as the context. Raises UnsafeConfiguration without servers."""
    configured = settings.servers()
    if configured is not None:
        yield configured
        return
    with start(settings.embedded_dir) as embedded:
        yield Servers(embedded.postgres_url, embedded.postgres_url, embedded.redis_url)
