"""The send path: client, receipts, the blocking facade."""
