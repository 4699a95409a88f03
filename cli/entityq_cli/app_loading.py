"""From `module:attribute` to the user's app, and to the settings that a command works with."""

import importlib
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from entityq import EntityQ, EntityQError
from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq_cli.exit_code import CommandError, ExitCode, usage_error

_SPECIFICATION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


def load_app(given: str | None) -> EntityQ:
    """The app of -A, else of ENTITYQ_APP or pyproject.toml. Raises CommandError with one sentence."""
    specification = given or Settings.load().app
    if specification is None:
        raise usage_error(
            "No app: give -A module:attribute (as in -A bank:app), set ENTITYQ_APP, "
            "or write app into [tool.entityq] of pyproject.toml."
        )
    match = _SPECIFICATION.fullmatch(specification)
    if match is None:
        raise usage_error(f"{specification!r} is not module:attribute, as in bank:app.")
    return _attribute(_import(match[1]), match[2])


def load_settings(given: str | None) -> Settings:
    """The app's own settings where an app is named anywhere, else those of variables and pyproject.toml.

    Raises CommandError, UnsafeConfiguration.
    """
    settings = Settings.load()
    return load_app(given).settings if given or settings.app else settings


def load_definitions(given: str | None) -> Mapping[str, EntityDefinition]:
    """The app's entity types where an app is named anywhere, else none. Raises CommandError."""
    return load_app(given).definitions if given or Settings.load().app else {}


def _import(name: str) -> ModuleType:
    # As Celery does: the app is found beside the caller, installed or not.
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise usage_error(f"There is no module {error.name} (looked in {directory} too).") from error
        raise _broken(name, error) from error
    except EntityQError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> CommandError:
    """The user's own mistake, with the place where it is: no traceback through this command is needed."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
        reason = error.msg
    else:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
        ]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        reason = str(error)
    return CommandError(
        f"Importing {name} failed: {type(error).__name__}: {reason} ({place}).", ExitCode.FAILED
    )


def _attribute(module: ModuleType, path: str) -> EntityQ:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            apps = [key for key, value in vars(module).items() if isinstance(value, EntityQ)]
            hint = f" Its app is {module.__name__}:{apps[0]}." if apps else ""
            raise usage_error(f"Module {module.__name__} has no {path}.{hint}")
        found = getattr(found, name)
    if not isinstance(found, EntityQ):
        raise usage_error(f"{module.__name__}:{path} is a {type(found).__name__}, not an EntityQ app.")
    return found
