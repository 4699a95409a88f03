"""The receive path: leases, intake, mailboxes, turns, commits."""
