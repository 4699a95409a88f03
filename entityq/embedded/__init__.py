"""Real PostgreSQL and Valkey from PyPI, for development: one pair per user, shared by all its processes."""

from entityq.embedded.servers import Embedded, start, start_temporary

__all__ = ["Embedded", "start", "start_temporary"]
