"""Where an app's servers are: configured, or embedded ones, started once for all who use them."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from entityq.config import Servers, Settings
from entityq.embedded import Embedded, start


class AppServers:
    """Of one app in one process."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._embedded: Embedded | None = None
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Generator[Servers]:
        """Embedded servers run at least as long as the context. Blocks while they start.

        Raises UnsafeConfiguration where the settings name no servers and ask for no embedded ones.
        """
        settings = self._settings()
        configured = settings.servers()
        if configured is not None:
            yield configured
            return
        embedded = self._enter(settings)
        try:
            yield Servers(embedded.postgres_url, embedded.postgres_url, embedded.redis_url)
        finally:
            self._leave()

    def _enter(self, settings: Settings) -> Embedded:
        with self._lock:
            if self._embedded is None:
                self._embedded = start(settings.embedded_dir)
            self._users += 1
            return self._embedded

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._embedded is not None:
                self._embedded.close()
                self._embedded = None
