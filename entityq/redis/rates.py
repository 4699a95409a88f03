"""A rate limit that all runners share: the algorithm of `entityq.runner.gcra`, in Redis and by its clock.

Nothing depends on what is kept here: when it is lost, one more burst starts.
"""

from typing import Any, cast

from redis.asyncio import Redis

from entityq.redis.deadline import deadline
from entityq.redis.keys import Keys

# Seconds.
DEADLINE = 0.1

# Frozen: runners of all versions share the key. Times are unix microseconds. Nobody blocks for longer than a burst
# takes, whatever the clock of a server that has taken over says.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = tonumber(redis.call('GET', KEYS[1]) or '0')
arrival = math.min(math.max(arrival, now), now + burst * interval)
local tolerance = (burst - 1) * interval
local granted = math.floor((now + tolerance - arrival) / interval + 1 + 1e-6)
granted = math.max(0, math.min(wanted, granted))
arrival = arrival + granted * interval
if granted > 0 then
    redis.call('SET', KEYS[1], string.format('%.3f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1000)
end
return {granted, math.ceil(math.max(0, arrival - tolerance - now))}
"""


class SharedRates:
    """Of one namespace."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._script: Any = cast("Any", redis).register_script(_SCRIPT)
        self._keys = keys

    async def take(self, name: str, *, interval: float, burst: int, wanted: int) -> tuple[int, float]:
        """How many may start now, and the seconds until one more may. One round trip.

        Raises RedisError, OSError, TimeoutError.
        """
        arguments = (interval * 1e6, burst, wanted)
        async with deadline(DEADLINE):
            granted, wait = await self._script(keys=[self._keys.rate(name)], args=arguments)
        return int(granted), wait / 1e6
