"""Entities and tasks in process, without servers: for the unit tests of what users write.

    async with testing.client(Account) as client:
        account = client.at("acct-1")
        assert await account.deposit(10, reference="r-1") == 10
        assert await account.deposit(10, reference="r-1") == 10  # the same key, the same reply

    with testing.client(Account) as client:  # in sync code: .call and .delay
        assert client.at("acct-1").deposit.call(10, reference="r-1") == 10

Everything is really encoded: arguments, envelopes, states and replies. Turns, primary keys, failures and
sends behave as on a cluster, because the same code runs them.
"""

from entityq.testing.client import InProcessClient, client

__all__ = ["InProcessClient", "client"]
