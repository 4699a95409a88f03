import logging
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.config import COMMAND_VARIABLES, Servers, Settings, declared_settings, masked_url, variable
from entityq.errors import UnsafeConfiguration

CANARY = "s3cr3t-canary"
POSTGRES = f"postgresql://user:{CANARY}@db:5432/bank?sslpassword={CANARY}&sslmode=require"
REDIS = f"redis://:{CANARY}@cache:6379/0?password={CANARY}"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Settings]:
    """Settings from arguments, an environment and the text of a pyproject.toml; nothing else is seen."""

    def load(
        overrides: dict[str, object] | None = None,
        environ: dict[str, str] | None = None,
        pyproject: str = "",
        namespace: str = "bank",
    ) -> Settings:
        (tmp_path / "pyproject.toml").write_text(pyproject)
        return Settings.load(namespace, overrides, environ or {}, tmp_path)

    return load


Load = Callable[..., Settings]


def test_defaults(load: Load) -> None:
    settings = load()
    assert settings.namespace == "bank"
    assert settings.schema == "entityq"
    assert (settings.shards, settings.lease_time, settings.max_payload) == (100, 5.0, 1024 * 1024)
    assert settings.max_pending == 1_000_000
    assert not settings.embedded


def test_there_are_at_most_forty_settings_and_each_says_what_it_is() -> None:
    assert len(declared_settings()) <= 40
    assert all(setting.help.endswith(".") for setting in declared_settings())


def test_every_default_fits_its_own_kind() -> None:
    for setting in declared_settings():
        if setting.default not in (None, "", ()):
            assert setting.kind.parse(setting.default) == setting.default
            assert setting.kind.parse(setting.kind.show(setting.default)) == setting.default


def test_arguments_win_over_variables_over_pyproject_over_defaults(load: Load) -> None:
    table = '[tool.entityq]\nlease_time = "1s"\nthreads = 1\nprefetch = 1\nnamespace = "toml"'
    environ = {"ENTITYQ_LEASE_TIME": "2s", "ENTITYQ_THREADS": "2", "UNRELATED": "x"}
    settings = load({"lease_time": 3}, environ, table)
    assert (settings.lease_time, settings.threads, settings.prefetch) == (3.0, 2, 1)
    assert (settings.namespace, settings.max_turns) == ("toml", 1000)


def test_an_argument_of_none_and_an_empty_variable_are_not_set(load: Load) -> None:
    assert load({"redis_url": None}, {"ENTITYQ_POSTGRES_URL": ""}).postgres_url is None


def test_the_nearest_pyproject_upward_is_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.entityq]\nthreads = 7")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert Settings.load("bank", {}, {}, below).threads == 7
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]")
    assert Settings.load("bank", {}, {}, below).threads == 32


def test_without_arguments_the_process_environment_and_directory_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.entityq]\nthreads = 7")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTITYQ_PREFETCH", "9")
    settings = Settings.load("bank")
    assert (settings.threads, settings.prefetch) == (7, 9)


@pytest.mark.parametrize(
    ("overrides", "environ", "pyproject", "sentence"),
    [
        ({"lease_tme": 1}, {}, "", r"EntityQ\(lease_tme=...\) is no setting. Did you mean lease_time\?"),
        ({}, {"ENTITYQ_THREAD": "1"}, "", r"ENTITYQ_THREAD is no setting. Did you mean ENTITYQ_THREADS\?"),
        ({}, {"ENTITYQ_XYZ": ""}, "", r"ENTITYQ_XYZ is no setting. Did you mean ENTITYQ_"),
        ({}, {}, "[tool.entityq]\nshard = 1", r"shard in \[tool.entityq\] of .* Did you mean shards\?"),
        ({"lease_time": "5 parsecs"}, {}, "", r"EntityQ\(lease_time=...\) must be a duration"),
        ({}, {"ENTITYQ_MAX_RESIDENT": "0"}, "", "ENTITYQ_MAX_RESIDENT must be a whole number, at least 1"),
        ({}, {}, "[tool.entityq]\nmax_payload = -1", r"max_payload in \[tool.entityq\] of .* must be a size"),
        ({}, {}, "[tool.entityq\n", "Cannot read .*pyproject.toml"),
        ({}, {"ENTITYQ_SCHEMA": "pg_catalog"}, "", "ENTITYQ_SCHEMA must be a lower-case"),
        ({"namespace": "a{b}"}, {}, "", "must be a name of letters"),
        ({"app": "bank"}, {}, "", "must be module:attribute"),
        ({"serializer": "pickle", "accept": ["pickle"]}, {}, "", "pickle can run code"),
        ({"accept": "json,yaml"}, {}, "", "yaml can run code"),
        ({"serializer": "json+zstd", "accept": "msgpack"}, {}, "", "is not one of accept"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    load: Load, overrides: dict[str, object], environ: dict[str, str], pyproject: str, sentence: str
) -> None:
    with pytest.raises(UnsafeConfiguration, match=sentence):
        load(overrides, environ, pyproject)


def test_the_apps_name_must_be_a_namespace(load: Load) -> None:
    with pytest.raises(UnsafeConfiguration, match=r"EntityQ\('my bank'\)"):
        load(namespace="my bank")


def test_variables_of_command_line_options_are_no_mistakes(load: Load) -> None:
    load({}, {"ENTITYQ_PROCESSES": "2", "ENTITYQ_LOG_FORMAT": "json"})


def test_the_variable_of_every_command_line_option_is_known() -> None:
    sources = (Path(__file__).parents[1] / "cli" / "entityq_cli").glob("*.py")
    found = {name for source in sources for name in re.findall(r'variable="(\w+)"', source.read_text())}
    assert found
    assert found <= {*COMMAND_VARIABLES, *(setting.name.upper() for setting in declared_settings())}


def test_settings_are_frozen(load: Load) -> None:
    with pytest.raises(FrozenInstanceError):
        load().threads = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_servers(load: Load) -> None:
    settings = load({"postgres_url": POSTGRES, "redis_url": REDIS, "embedded": True})
    assert settings.servers() == Servers(POSTGRES, POSTGRES, REDIS)
    direct = load({"postgres_url": POSTGRES, "redis_url": REDIS, "lease_url": "postgresql://direct/bank"})
    assert direct.servers() == Servers(POSTGRES, "postgresql://direct/bank", REDIS)


def test_p8_half_a_pair_is_refused_when_servers_are_needed(load: Load) -> None:
    for urls, missing in [
        ({"postgres_url": POSTGRES}, "ENTITYQ_REDIS_URL"),
        ({"redis_url": REDIS}, "ENTITYQ_POSTGRES_URL"),
        ({"lease_url": POSTGRES}, "ENTITYQ_POSTGRES_URL"),
        ({"redis_url": REDIS, "embedded": True}, "ENTITYQ_POSTGRES_URL"),
    ]:
        settings = load(urls)
        with pytest.raises(UnsafeConfiguration, match=f"half-configured pair.*Set {missing}"):
            settings.servers()


def test_p8_no_servers_at_all_are_refused_unless_embedded_ones_are_asked_for(load: Load) -> None:
    with pytest.raises(UnsafeConfiguration, match="Set ENTITYQ_POSTGRES_URL and ENTITYQ_REDIS_URL"):
        load().servers()
    assert load({"embedded": True}).servers() is None


def test_no_password_is_printed(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(
        {}, {"ENTITYQ_POSTGRES_URL": POSTGRES, "ENTITYQ_REDIS_URL": REDIS, "ENTITYQ_LEASE_URL": POSTGRES}
    )
    logging.getLogger("test").warning("%s %r %s", settings, settings.servers(), settings.shown())
    printed = caplog.text + repr([settings, settings.servers()]) + str(settings.shown())
    assert CANARY not in printed
    assert "@db:5432/bank" in printed
    assert "@cache:6379/0" in printed


@pytest.mark.parametrize(
    "bad", [CANARY, f"postgres:/user:{CANARY}@db", f"mysql://u:{CANARY}@db", f"host=db password={CANARY}"]
)
def test_no_password_is_in_the_error_of_a_url_that_does_not_fit(load: Load, bad: str) -> None:
    with pytest.raises(UnsafeConfiguration) as caught:
        load({}, {"ENTITYQ_POSTGRES_URL": bad})
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@given(
    st.sampled_from(["postgresql", "redis"]),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=5),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=5),
)
def test_a_password_is_masked_whatever_stands_around_it(scheme: str, before: str, after: str) -> None:
    password = f"{before}{CANARY}{after}"
    for address in (
        f"{scheme}://user:{password}@host:1/db",
        f"{scheme}://host:1/db?password={password}",
        f"{scheme}://user:{password}@host:1/db?password={password}&x=1",
        password,
    ):
        assert CANARY not in masked_url(address)


def test_a_masked_url_still_says_where() -> None:
    assert (
        masked_url("postgresql://u:p@a:1,b:2/bank?sslmode=require")
        == "postgresql://***@a:1,b:2/bank?sslmode=require"
    )
    assert masked_url("redis://cache:6379/0") == "redis://cache:6379/0"
    assert masked_url("postgresql://u@/bank?host=/run/pg") == "postgresql://***@/bank?host=/run/pg"


def test_settings_survive_pickling_for_child_processes(load: Load) -> None:
    settings = load({"postgres_url": POSTGRES, "redis_url": REDIS})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_variable() -> None:
    assert variable("lease_time") == "ENTITYQ_LEASE_TIME"


def test_the_documentation_is_up_to_date() -> None:
    docs = Path(__file__).parents[1] / "docs"
    written = subprocess.run(
        [sys.executable, docs / "configuration.py"], capture_output=True, text=True, check=True, timeout=60
    )
    assert (docs / "configuration.md").read_text() == written.stdout, (
        "run: python docs/configuration.py > docs/configuration.md"
    )
