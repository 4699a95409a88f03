"""Where the servers are: configured, or embedded."""

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from entityq.config import Servers, Settings
from entityq.embedded import start


@contextmanager
def open_servers(settings: Settings) -> Generator[Servers]:
    """Embedded ones run at least as long as the context; it blocks while they start.

    Raises UnsafeConfiguration where the settings name no servers and ask for no embedded ones.
    """
    configured = settings.servers()
    if configured is not None:
        yield configured
        return
    with start(settings.embedded_dir) as embedded:
        yield Servers(embedded.postgres_url, embedded.postgres_url, embedded.redis_url)


class AppServers:
    """Of one app in one process: opened once for all who use them at a time."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._opened = ExitStack()
        self._servers: Servers | None = None
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Generator[Servers]:
        """As `open_servers`."""
        with self._lock:
            if self._servers is None:
                self._servers = self._opened.enter_context(open_servers(self._settings()))
            self._users += 1
            servers = self._servers
        try:
            yield servers
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._servers = None
                    self._opened.close()
