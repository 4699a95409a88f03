"""Writes docs/configuration.md from the settings: python docs/configuration.py > docs/configuration.md"""

import sys

from entityq.config import DeclaredSetting, declared_settings, variable

INTRODUCTION = """\
# Configuration

<!-- Written by docs/configuration.py from entityq/config.py. -->

Every setting can be given in three places; the first that has it wins:

1. an argument of the app: `EntityQ("bank", lease_time="2s")`;
2. an environment variable: `ENTITYQ_LEASE_TIME=2s`; one that is set to nothing counts as not set;
3. `lease_time = "2s"` under `[tool.entityq]` in the nearest `pyproject.toml`, from the working directory up.

The result is checked once, when it is first needed. A name that is no setting is refused, and so is a variable
that begins with `ENTITYQ_` and is neither a setting nor an option of the command line.

Durations are seconds, or have a unit: `250ms`, `5s`, `2m`, `1h`, `7d`. Sizes are bytes, or have a unit: `64KiB`,
`1MiB`. Lists are separated by commas, or are arrays in TOML.

`postgres_url` and `redis_url` go together. With one of them alone, or with neither and without `embedded`,
nothing starts, so that no process ever writes into a database of its own by mistake. Passwords in URLs are
never printed.

`postgres_url` and `lease_url` may be the address of a pooler in session mode. A pooler in transaction mode
gives one session to many clients: a runner's locks, and the settings of entityq's statements, would be
somebody else's.

| setting | variable | default | values | meaning |
|---|---|---|---|---|
"""


def row(setting: DeclaredSetting) -> str:
    names = f"| `{setting.name}` | `{variable(setting.name)}` "
    return f"{names}| {default(setting)} | {setting.kind.name} | {setting.help} |\n"


def default(setting: DeclaredSetting) -> str:
    return f"`{setting.kind.show(setting.default)}`" if setting.default not in (None, "", ()) else ""


if __name__ == "__main__":
    sys.stdout.write(INTRODUCTION + "".join(map(row, declared_settings())))
