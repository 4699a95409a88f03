"""What every health check must do, for ping (over a real Redis) and k8s (against a real HTTPS server)."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from entityq.config import Settings
from entityq.errors import UnsafeConfiguration
from entityq.kubernetes.api import PodList
from entityq.postgres.membership import Member
from entityq.redis.connect import open_client, open_connection
from entityq.redis.control import ControlChannel
from entityq.redis.keys import Keys
from entityq.runner.health import HealthCheck, NoCheck
from entityq.runner.health_checks import health_checks
from entityq.runner.ping_check import PingAnswers, PingCheck
from entityq.runner.pings import UNANSWERED
from entityq.runner.pod_check import PodCheck
from entityq.runner.tasks import end
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.kubernetes import NOT_READY, KubernetesServer, Request, kubernetes_server, pod
from tests.support.waiting import eventually_async

ME, PEER = "bank-0", "bank-1"
LEASE_TIME = 2.5
MOST_LOOKS = 20


def member(incarnation: int, host: str) -> Member:
    return Member(
        incarnation=incarnation,
        number=incarnation,
        name="runner",
        pid=incarnation,
        groups=frozenset(),
        types=frozenset(),
        weight=1.0,
        draining=False,
        groups_of_types=(),
        host=host,
    )


class World(Protocol):
    """A runner and its peer. `rounds`: looks after which an unhealthy peer can be known."""

    check: HealthCheck
    rounds: int

    async def spoil_peer(self) -> None: ...

    async def mend_peer(self) -> None: ...

    async def spoil_check(self) -> None:
        """It can no longer find out anything."""
        ...

    async def mend_check(self) -> None: ...


class PingWorld:
    """Two runners on the control channel, each with connections of its own; the first one's way can break."""

    def __init__(self, mine: ControlChannel, others: ControlChannel, proxy: FaultProxy) -> None:
        self.check: HealthCheck = PingCheck(mine, 1, lease_time=LEASE_TIME)
        self.rounds = UNANSWERED
        self._mine = mine
        self._others = others
        self._proxy = proxy
        self._answering: asyncio.Task[None] | None = None

    async def spoil_peer(self) -> None:
        assert self._answering is not None
        await end(self._answering)
        self._answering = None

    async def mend_peer(self) -> None:
        assert self._answering is None
        self._answering = asyncio.create_task(PingAnswers(self._others, 2).run())

    async def spoil_check(self) -> None:
        self._proxy.black_hole()

    async def mend_check(self) -> None:
        self._proxy.heal()
        self._proxy.cut()
        for wanted in (False, True):

            async def changed(wanted: bool = wanted) -> bool:
                return self._mine.subscribed.is_set() is wanted

            await eventually_async(changed, 10, "a new subscription")


class PodWorld:
    def __init__(self, server: KubernetesServer) -> None:
        self.check: HealthCheck = PodCheck(PodList(server.api, deadline=10.0), ME)
        self.rounds = 1
        self._server = server

    async def spoil_peer(self) -> None:
        self._server.pods = [pod(ME), pod(PEER, NOT_READY)]

    async def mend_peer(self) -> None:
        self._server.pods = [pod(ME), pod(PEER)]

    async def spoil_check(self) -> None:
        self._server.fault = lambda request: request.status(503, "try again")

    async def mend_check(self) -> None:
        self._server.fault = None


@asynccontextmanager
async def open_control(redis_url: str, url: str) -> AsyncGenerator[ControlChannel]:
    async with open_client(url) as client:
        control = ControlChannel(client, open_connection(url), Keys("tests").control_channel())
        receiving = asyncio.create_task(control.run())
        try:
            async with asyncio.timeout(10):
                await control.subscribed.wait()
            yield control
        finally:
            await end_quietly(receiving)


async def end_quietly(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(params=["ping", "k8s"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """The peer is well."""
    if request.param == "k8s":
        with kubernetes_server(tmp_path) as server:
            pods = PodWorld(server)
            await pods.mend_peer()
            yield pods
        return
    redis_url: str = request.getfixturevalue("redis_url")
    async with (
        fault_proxy(redis_url) as proxy,
        open_control(redis_url, proxy.url) as mine,
        open_control(redis_url, redis_url) as others,
    ):
        ping = PingWorld(mine, others, proxy)
        await ping.mend_peer()
        yield ping
        await ping.spoil_peer()


async def healthy(world: World) -> bool | None:
    """The judgement of one look; None without one."""
    judgements = await world.check.look([member(2, PEER)])
    assert judgements.keys() <= {2}
    return judgements[2].healthy if judgements else None


async def verdict(world: World) -> bool | None:
    """After as many looks as it takes: on a slow machine an answer can come too late for its look."""
    for _ in range(MOST_LOOKS):
        judgement = await healthy(world)
        if judgement is not None:
            return judgement
    return None


async def test_a_peer_that_is_well_is_healthy(world: World) -> None:
    assert await verdict(world) is True


async def test_a_peer_that_is_not_well_is_unhealthy_and_healthy_again_when_it_is(world: World) -> None:
    assert await verdict(world) is True
    await world.spoil_peer()
    assert await verdict(world) is False
    assert await verdict(world) is False
    await world.mend_peer()
    assert await verdict(world) is True


async def test_nobody_is_judged_by_a_check_that_does_not_work(world: World) -> None:
    await world.spoil_peer()
    await world.spoil_check()
    for _ in range(world.rounds + 1):
        assert await healthy(world) is None
    await world.mend_check()
    assert await verdict(world) is False
    await world.mend_peer()
    assert await verdict(world) is True


async def test_a_look_at_nobody(world: World) -> None:
    assert await world.check.look([]) == {}


async def test_large_clusters_look_less_often(world: World) -> None:
    check = world.check
    assert check.pause(2) == check.pause(3)
    # All runners together: so many looks a second at most, however many they are.
    assert 512 / check.pause(512) == pytest.approx(256 / check.pause(256))


async def test_noop_judges_nobody() -> None:
    assert await NoCheck().look([member(2, PEER)]) == {}
    assert NoCheck().pause(1) > 600


# ----- k8s alone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path) as server:
        yield server


async def test_k8s_a_runner_without_a_pod_is_unhealthy(server: KubernetesServer) -> None:
    server.pods = [pod(ME), pod("bank-2")]
    judgements = await PodCheck(PodList(server.api), ME).look([member(2, PEER), member(3, "bank-2")])
    assert judgements[2].reason == "no pod has its host's name (2 listed)"
    assert not judgements[2].healthy
    assert judgements[3].healthy


async def test_k8s_a_list_without_ones_own_pod_is_no_list_of_runners(
    server: KubernetesServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.pods = [pod("web-0"), pod("web-1")]
    check = PodCheck(PodList(server.api, "app=web"), ME)
    for _ in range(2):
        assert await check.look([member(2, PEER)]) == {}
    (message,) = caplog.messages
    assert "ENTITYQ_KUBERNETES_SELECTOR" in message


async def test_k8s_one_of_two_pods_with_a_hosts_name_is_enough(server: KubernetesServer) -> None:
    check = PodCheck(PodList(server.api), ME)
    for pods in ([pod(PEER), pod(PEER, NOT_READY)], [pod(PEER, NOT_READY), pod(PEER)]):
        server.pods = [pod(ME), *pods]
        assert (await check.look([member(2, PEER)]))[2].healthy


async def test_k8s_an_outage_is_logged_once(
    server: KubernetesServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "entityq.runner.pod_check")
    server.pods = [pod(ME), pod(PEER)]
    check = PodCheck(PodList(server.api), ME)
    for outage in range(2):
        server.fault = lambda request: request.status(403, "pods is forbidden")
        for _ in range(3):
            assert await check.look([member(2, PEER)]) == {}
        server.fault = None
        for _ in range(3):
            assert (await check.look([member(2, PEER)]))[2].healthy
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * (outage + 1)
    assert "pods is forbidden" in caplog.messages[0]


def test_k8s_a_list_that_does_not_come_does_not_hold_up_the_end(server: KubernetesServer) -> None:
    server.fault = Request.hold
    check = PodCheck(PodList(server.api, deadline=60.0), ME)

    async def requested() -> bool:
        return bool(server.requests)

    async def give_up() -> None:
        looking = asyncio.create_task(check.look([member(2, PEER)]))
        await eventually_async(requested, 10, "a request")
        looking.cancel()
        await asyncio.wait([looking])

    process = threading.Thread(target=lambda: asyncio.run(give_up()))
    process.start()
    process.join(15)
    ended = not process.is_alive()
    server.ended.set()  # or it would be held until the end of the test
    process.join()
    assert ended


# ----- which one


async def test_the_setting_chooses(redis_url: str) -> None:
    async with open_control(redis_url, redis_url) as control:
        for name, kind in (("ping", PingCheck), ("noop", NoCheck)):
            settings = Settings.load("tests", {"runner_health": name})
            assert isinstance(health_checks(settings, {})(control, 1), kind)
    assert isinstance(health_checks(Settings.load("tests"), {})(control, 1), PingCheck)


async def test_k8s_in_a_pod(server: KubernetesServer, redis_url: str) -> None:
    server.pods = [pod(socket.gethostname()), pod(PEER, NOT_READY)]
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
    settings = Settings.load("tests", {"runner_health": "k8s", "kubernetes_selector": "app=bank"})
    async with open_control(redis_url, redis_url) as control:
        check = health_checks(settings, environ, server.directory)(control, 1)
        judgements = await check.look([member(2, PEER)])
    assert judgements[2].reason == "its pod is not ready since 2026-11-23T10:00:00Z"
    assert server.requests[0].endswith("&labelSelector=app%3Dbank")


async def test_k8s_outside_of_a_pod_is_refused() -> None:
    with pytest.raises(UnsafeConfiguration, match="runner_health is k8s, but this is no pod"):
        health_checks(Settings.load("tests", {"runner_health": "k8s"}), {})
