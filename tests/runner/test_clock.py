"""The clock that goes on while the machine is suspended."""

import subprocess
import sys
import time

import pytest

from entityq.runner import clock

# Ahead of the monotonic clock by so many seconds, as after a suspension.
AHEAD = 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the monotonic clock goes on")
def test_a_suspension_is_counted() -> None:
    """Time namespaces are made for this: for containers that move from one suspended machine to another."""
    program = "import time; from entityq.runner import clock; print(clock.now() - time.monotonic())"
    command = [
        *("unshare", "--user", "--map-root-user", "--time", "--fork", "--boottime", str(AHEAD)),
        *(sys.executable, "-c", program),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if finished.returncode and "unshare" in finished.stderr:
        pytest.skip(finished.stderr)
    assert float(finished.stdout) > AHEAD - 1, finished


def test_it_does_not_go_back() -> None:
    times = [clock.now() for _ in range(1_000)]
    assert times == sorted(times)
    assert clock.now() >= time.monotonic() - 1
