"""What the documentation names is what there is: links, code, commands, files, tests, errors."""

import ast
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from entityq_cli.main import cli

from entityq import errors
from entityq.errors import EntityQError
from tests.support.processes import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"(?<![\w/.-])(?:entityq|cli/entityq_cli|tests|examples|docs)/[\w/]*\.(?:py|sql|md)\b")
_NAMED_TEST = re.compile(r"\]\(([^)\s]+\.py)\)|`(test_\w+)`")
_MARKED = re.compile(
    r"^<!-- (file|runnable with): (\w+)\.py -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)

pages = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken: list[str] = []
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    return broken


def commands(text: str) -> list[str]:
    """Calls of `entityq` after a prompt, and those in the running text that begin with the command."""
    shown = [
        line for _, body in _FENCE.findall(text) for line in re.findall(r"^\$ (.*)$", body, re.MULTILINE)
    ]
    named = [code for code in _CODE.findall(_FENCE.sub("", text)) if code.startswith("entityq ")]
    parts = [part.strip() for line in [*shown, *named] for part in re.split(r"&&|\|\s", line)]
    return [part for part in parts if re.match(r"(?:[A-Z_]+=\S* )*entityq ", part)]


def wrong_with(command: str) -> str | None:
    """What is wrong with a call of `entityq`, None when nothing is. Words in capitals stand for anything."""
    words = shlex.split(command, comments=True)
    words = words[words.index("entityq") + 1 :]
    if words[0].startswith("-") or words[0].isupper():
        return None if words[0] in {"--help", "--version", "-h"} or words[0].isupper() else words[0]
    found = cli.get_command(click.Context(cli), words[0])
    if isinstance(found, click.Group) and len(words) > 1:
        found = found.get_command(click.Context(found), words[1])
    if found is None:
        return f"no command {' '.join(words[:2])}"
    known = {spelling for parameter in found.params for spelling in parameter.opts} | {"--help", "-h"}
    given = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word)]
    unknown = [option for option in given if option not in known]
    return f"{words[0]} has no {unknown[0]}" if unknown else None


@pages
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pages
def test_python_compiles(page: Path) -> None:
    for language, body in _FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = {command: wrong_with(command) for command in commands(page.read_text())}
    assert {command: why for command, why in wrong.items() if why is not None} == {}


@pages
def test_named_files_exist(page: Path) -> None:
    text = _LINK.sub("", page.read_text())
    named = [name for name in _FILE.findall(text) if "NNNN" not in name]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_named_tests_are_in_the_file_that_is_named_with_them(page: Path) -> None:
    file = None
    for line in page.read_text().splitlines():
        for target, test in _NAMED_TEST.findall(line):
            if target:
                file = page.parent / target
            else:
                assert file is not None, test
                assert re.search(rf"def {test}\(", file.read_text()), f"{test} is not in {file}"


def test_the_quickstart_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = _MARKED.findall((ROOT / "docs" / "quickstart.md").read_text())
    assert [kind for kind, _, _ in marked] == ["file", "runnable with"]
    for kind, name, source in marked:
        module = ModuleType(name if kind == "file" else "test")
        if kind == "file":
            monkeypatch.setitem(sys.modules, name, module)
        exec(source, module.__dict__)
        for test in [value for key, value in vars(module).items() if key.startswith("test_")]:
            test()


def test_every_error_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    names = {
        cls.__name__
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, EntityQError)
    }
    assert names - set(_CODE.findall(text)) == set()


def test_named_variables_are_those_of_settings_and_options() -> None:
    known = {str(option.envvar) for option in _options()} | set(
        re.findall(r"`(ENTITYQ_[A-Z_]+)`", (ROOT / "docs" / "configuration.md").read_text())
    )
    for page in PAGES:
        named = set(re.findall(r"\bENTITYQ_[A-Z_]*[A-Z]\b", page.read_text()))
        assert named - known == set(), page


def _options(group: click.Group = cli) -> list[click.Option]:
    """Of all its commands, and of those of the groups in it."""
    context = click.Context(group)
    found: list[click.Option] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += _options(command)
        elif command is not None:
            found += [option for option in command.params if isinstance(option, click.Option)]
    return found


def test_what_is_wrong_is_noticed() -> None:
    assert wrong_with("entityq jump") == "no command jump"
    assert wrong_with("A=b entityq worker -A x:y --jump") == "worker has no --jump"
    assert commands("`entityq jump`\n```console\n$ entityq migrate && entityq leap\n```\n") == [
        "entityq migrate",
        "entityq leap",
        "entityq jump",
    ]
    page = ROOT / "docs" / "index.md"
    assert broken_links(page, "[a](no.md) [b](cli.md#no) [c](cli.md#send)") == ["no.md", "cli.md#no"]
