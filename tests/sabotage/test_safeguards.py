"""The table fits the sources; `make sabotage` shows that each of its rows is true."""

import shutil
from pathlib import Path

import pytest

from tests.sabotage.safeguard import Safeguard
from tests.sabotage.safeguards import SAFEGUARDS
from tests.support.processes import ROOT


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name)
def test_it_can_be_switched_off(safeguard: Safeguard, tmp_path: Path) -> None:
    for edit in safeguard.edits:
        target = tmp_path / edit.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / edit.file, target)
    safeguard.switch_off(tmp_path)
    assert all((ROOT / test.split("::")[0]).is_file() for test in safeguard.noticed_by)


def test_the_page_names_every_safeguard() -> None:
    page = (ROOT / "docs" / "sabotage.md").read_text()
    missing = [safeguard.name for safeguard in SAFEGUARDS if f"| {safeguard.name} |" not in page]
    assert not missing
