"""What the README shows is what there is."""

import asyncio
import re
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_example_is_the_bank() -> None:
    assert PYTHON[0] == (ROOT / "examples" / "bank.py").read_text()


def test_the_tests_of_ones_own_entities_pass() -> None:
    names: dict[str, Any] = {}
    exec(PYTHON[-1], names)
    asyncio.run(names["test_deposit"]())
    names["test_withdraw"]()


def test_links_lead_somewhere() -> None:
    targets = [Path(target) for target in re.findall(r"\]\(([^)]+)\)", README)]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
