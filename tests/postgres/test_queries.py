from pathlib import Path

import pytest

from entityq.postgres.queries import load


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def files(package: str) -> Path:
        assert package == "entityq.postgres"
        return tmp_path

    monkeypatch.setattr("importlib.resources.files", files)
    return tmp_path


def test_queries_are_found_by_name_without_comments_and_semicolons(package: Path) -> None:
    (package / "x.sql").write_text(
        "-- a file\n\n-- name: one\n-- why\nSELECT 1 -- kept\n  -- and why\nFROM t;\n\n"
        "-- name: two\nSELECT '-- name: x';"
    )
    assert load("x.sql") == {"one": b"SELECT 1 -- kept\nFROM t", "two": b"SELECT '-- name: x'"}


def test_a_missing_name_fails(package: Path) -> None:
    (package / "x.sql").write_text("-- name: one\nSELECT 1")
    with pytest.raises(KeyError, match="two"):
        load("x.sql")["two"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SELECT 0;\n-- name: one\nSELECT 1", "belongs to no query"),
        ("-- name: one\nSELECT 1\n-- name: one\nSELECT 2", "one is given twice"),
        ("-- name: one\n-- name: two\nSELECT 2", "one is empty"),
    ],
)
def test_files_that_cannot_be_meant(package: Path, text: str, error: str) -> None:
    (package / "x.sql").write_text(text)
    with pytest.raises(ValueError, match=error):
        load("x.sql")
