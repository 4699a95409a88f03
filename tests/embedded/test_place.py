import os
from pathlib import Path

import pytest

from entityq.embedded.place import Place, ServiceUser, default_directory, may_enter


def test_a_users_own_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "entityq"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".local" / "share" / "entityq"


def test_roots_directory_is_not_below_its_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == Path("/var/lib/entityq")


def test_sockets_lie_below_the_directory_where_their_path_is_short_enough() -> None:
    assert Place(Path("/var/lib/entityq")).sockets == Path("/var/lib/entityq/run")
    long = Place(Path("/home") / ("n" * 80) / "entityq").sockets
    assert long.parent == Path("/tmp")
    assert long == Place(Path("/home") / ("n" * 80) / "entityq").sockets
    assert long != Place(Path("/home") / ("m" * 80) / "entityq").sockets


@pytest.mark.parametrize(("mode", "expected"), [(0o700, False), (0o710, True), (0o701, False), (0o771, True)])
def test_the_right_that_counts_is_the_most_specific(directory: Path, mode: int, expected: bool) -> None:
    """A member of the directory's group has the group's rights, not everybody's."""
    directory.mkdir()
    directory.chmod(mode)
    member = ServiceUser(uid=os.geteuid() + 4711, gid=directory.stat().st_gid)
    assert may_enter(directory, member) is expected
