"""Running a pipeline of redis-py."""

from typing import Any

from redis.exceptions import RedisError


async def execute(pipeline: Any) -> list[Any]:
    """The results; raises the first error among them, and what the connection raises.

    redis-py would put the command into the text of the error, and with it into the log what users have sent.
    """
    results: list[Any] = await pipeline.execute(raise_on_error=False)
    for result in results:
        if isinstance(result, RedisError):
            raise result
    return results
