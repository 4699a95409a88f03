"""The command without servers, for what it refuses before it needs any."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import CommandLine


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[CommandLine]:
    """Servers are neither configured nor embedded."""
    with CommandLine({"ENTITYQ_EMBEDDED": "0"}, tmp_path) as command_line:
        yield command_line
