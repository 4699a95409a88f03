"""What a wrong -A says: one sentence, no traceback."""

from pathlib import Path

import pytest

from tests.cli.workers import write_app
from tests.support.processes import CommandLine, Finished


def load(offline: CommandLine, directory: Path, app: str | None) -> Finished:
    """By the quickest command that loads an app and touches no server."""
    arguments = [] if app is None else ["-A", app]
    return offline.run("migrate", "--print", *arguments, cwd=directory)


def one_sentence(finished: Finished) -> str:
    assert finished.stdout == ""
    assert finished.stderr.startswith("Error: ")
    assert finished.stderr.count("\n") == 1
    return finished.stderr.removeprefix("Error: ").rstrip()


def test_without_an_app(offline: CommandLine, tmp_path: Path) -> None:
    finished = offline.run("send", "Account/a", "deposit", cwd=tmp_path)

    assert finished.code == 2
    assert one_sentence(finished).startswith("No app: give -A module:attribute")


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("shop", "'shop' is not module:attribute, as in bank:app."),
        ("stall:app", "There is no module stall (looked in "),
        ("shop.stall:app", "There is no module shop.stall (looked in "),
        ("shop:ap", "Module shop has no ap. Its app is shop:app."),
        ("shop:Entity", "shop:Entity is a type, not an EntityQ app."),
    ],
)
def test_what_is_not_there_is_a_usage_error(
    offline: CommandLine, tmp_path: Path, app: str, sentence: str
) -> None:
    write_app(tmp_path, "")

    finished = load(offline, tmp_path, app)

    assert finished.code == 2
    assert one_sentence(finished).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("nothing\n", "NameError: name 'nothing' is not defined", 4),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'", 4),
        ("def\n", "SyntaxError: ", 4),
        ("\n\n@app.entity\nclass A(Entity):\n    x: int\n", "TypeError: A.x has no default", 6),
    ],
)
def test_a_broken_module_is_named_with_the_line(
    offline: CommandLine, tmp_path: Path, text: str, what: str, line: int
) -> None:
    app = write_app(tmp_path, text)

    finished = load(offline, tmp_path, app)

    assert finished.code == 1
    sentence = one_sentence(finished)
    assert sentence.startswith(f"Importing shop failed: {what}")
    if "TypeError" not in what:
        assert f"{tmp_path / 'shop.py'}, line {line}" in sentence


def test_the_app_is_found_beside_the_caller(offline: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "")

    finished = load(offline, tmp_path, app)

    assert finished.code == 0
    assert finished.stdout.startswith("BEGIN;")


def test_the_app_of_pyproject(offline: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "")
    (tmp_path / "pyproject.toml").write_text(f'[tool.entityq]\napp = "{app}x"\n')

    finished = load(offline, tmp_path, None)

    assert finished.code == 2
    assert one_sentence(finished) == "Module shop has no appx. Its app is shop:app."


def test_an_unknown_setting_is_one_sentence(offline: CommandLine, tmp_path: Path) -> None:
    finished = offline.run("status", env={"ENTITYQ_SHARD": "3"}, cwd=tmp_path)

    assert finished.code == 1
    assert one_sentence(finished) == "The variable ENTITYQ_SHARD is no setting. Did you mean ENTITYQ_SHARDS?"
