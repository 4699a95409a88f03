"""Which files `entityq dev` looks at."""

import os
from pathlib import Path

from entityq_cli.file_watch import changed_file, snapshot


def test_python_files_below_the_directory(tmp_path: Path) -> None:
    for name in (
        "app.py",
        "package/module.py",
        "data.txt",
        ".hidden/module.py",
        "__pycache__/module.py",
        "venv/pyvenv.cfg",
        "venv/lib/module.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()

    assert set(snapshot(tmp_path)) == {tmp_path / "app.py", tmp_path / "package" / "module.py"}


def test_a_changed_a_new_and_a_removed_file(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    nothing = snapshot(tmp_path)
    file.touch()
    before = snapshot(tmp_path)
    os.utime(file, ns=(0, before[file] + 1))
    after = snapshot(tmp_path)

    assert changed_file(nothing, before) == file
    assert changed_file(before, after) == file
    assert changed_file(after, nothing) == file
    assert changed_file(after, after) is None


def test_a_dangling_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "app.py").symlink_to(tmp_path / "nowhere.py")

    assert snapshot(tmp_path) == {}
