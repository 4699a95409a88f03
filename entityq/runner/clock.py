"""The clock by which runners are judged, and by which one knows that it cannot have been."""

import time

# It goes on while the machine is suspended, as the others' clocks do. On Linux the monotonic clock stands still
# then: whoever wakes up would take itself for just heard, and its last read of the others for a recent one.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since some moment; never goes back."""
    return time.clock_gettime(_CLOCK)
