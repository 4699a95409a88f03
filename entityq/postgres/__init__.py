"""The outbox, leases and state in SQL."""
