"""Lists of pods from a real HTTPS server, and what such a server can do to a client."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from entityq.errors import UnsafeConfiguration
from entityq.kubernetes.api import Api, KubernetesError, PodList
from tests.support.kubernetes import KubernetesServer, Request, kubernetes_server, make_certificate, pod

HOSTS = [f"bank-{number}" for number in range(5)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path) as server:
        server.pods = [pod(host) for host in HOSTS]
        yield server


def hosts(pods: PodList) -> list[str]:
    return [one.host for one in pods.read()]


def test_the_pods_of_the_service_accounts_namespace(server: KubernetesServer) -> None:
    assert hosts(PodList(server.api)) == HOSTS
    assert server.requests == ["/api/v1/namespaces/bank/pods?limit=500"]


def test_a_label_selector_is_passed_on(server: KubernetesServer) -> None:
    assert hosts(PodList(server.api, "app=bank,tier in (a, b)")) == HOSTS
    assert server.requests == [
        "/api/v1/namespaces/bank/pods?limit=500&labelSelector=app%3Dbank%2Ctier+in+%28a%2C+b%29"
    ]


def test_a_long_list_comes_in_pages(server: KubernetesServer) -> None:
    server.page = 2
    assert hosts(PodList(server.api)) == HOSTS
    assert [path.partition("continue=")[2] for path in server.requests] == ["", "2", "4"]


def test_the_token_is_read_again_each_time(server: KubernetesServer) -> None:
    pods = PodList(server.api)
    assert hosts(pods) == HOSTS
    server.rotate("second-token")
    assert hosts(pods) == HOSTS


def test_a_token_that_is_not_good_is_not_repeated(server: KubernetesServer) -> None:
    (server.directory / "token").write_text("bad-token")
    with pytest.raises(KubernetesError, match="401 Unauthorized: Unauthorized") as caught:
        PodList(server.api).read()
    assert "bad-token" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "se cret", "se\r\ncret", "secreté"])
def test_what_is_no_token_is_not_sent_and_not_repeated(server: KubernetesServer, token: str) -> None:
    (server.directory / "token").write_text(token)
    with pytest.raises(KubernetesError, match="holds no token") as caught:
        PodList(server.api).read()
    assert "cret" not in str(caught.value)
    assert server.requests == []


def test_a_missing_right_is_named_with_what_to_do(server: KubernetesServer) -> None:
    what = 'pods is forbidden: User "system:serviceaccount:bank:default" cannot list resource "pods"'
    server.fault = lambda request: request.status(403, what)
    with pytest.raises(KubernetesError) as caught:
        PodList(server.api).read()
    assert f"403 Forbidden: {what}" in str(caught.value)
    assert "the right to list pods" in str(caught.value)


Fault = Callable[[Request], None]

NO_LISTS: list[tuple[Fault, str]] = [
    (lambda request: request.status(500, "etcd is away"), "500 Internal Server Error: etcd is away"),
    (lambda request: request.send(b"bad gateway", 502), "502 Bad Gateway: no reason given"),
    (lambda request: request.send(b"<html>Sign in</html>"), "no list of pods"),
    (lambda request: request.send(b'{"kind":"PodList","items":[{}]}'), "no list of pods"),
    (lambda request: request.send(b"", 302, Location="https://elsewhere.example/"), "302 Found"),
]


@pytest.mark.parametrize(("fault", "what"), NO_LISTS)
def test_no_list(server: KubernetesServer, fault: Fault, what: str) -> None:
    server.fault = fault
    with pytest.raises(KubernetesError, match=what):
        PodList(server.api).read()


def babble(request: Request) -> None:
    request.wfile.write(b"what?\r\n\r\n")
    request.close_connection = True


def cut(request: Request) -> None:
    """In the middle of a list."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"kind":"PodList","items":[')
    request.close_connection = True


@pytest.mark.parametrize("fault", [Request.hold, Request.drip, cut, babble])
def test_half_a_list_and_none_at_all(server: KubernetesServer, fault: Fault) -> None:
    server.fault = fault
    errors: list[Exception] = []

    def read() -> None:
        try:
            PodList(server.api, deadline=0.3).read()
        except KubernetesError as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    reading.join(20)
    ended = not reading.is_alive()
    server.ended.set()  # or it would be read until the end of the test
    reading.join()
    assert ended
    assert len(errors) == 1


def test_the_length_of_all_pages_together_is_bounded(server: KubernetesServer) -> None:
    server.page = 1
    server.pods = [pod(host, filler="x" * 10_000) for host in HOSTS]
    assert hosts(PodList(server.api, max_bytes=100_000)) == HOSTS
    with pytest.raises(KubernetesError, match="more than 30,000 bytes: set ENTITYQ_KUBERNETES_SELECTOR"):
        PodList(server.api, max_bytes=30_000).read()


def test_a_server_whose_certificate_the_service_account_does_not_know_gets_no_token(
    server: KubernetesServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    make_certificate(other / "ca.crt", other / "key")
    (server.directory / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(KubernetesError, match="SSLCertVerificationError"):
        PodList(server.api).read()
    assert server.requests == []


def test_no_server(server: KubernetesServer) -> None:
    with pytest.raises(KubernetesError, match=r"at 127\.0\.0\.1:1, list of pods: ConnectionRefusedError"):
        PodList(Api("127.0.0.1", 1, server.directory)).read()


def test_a_pod_is_told_where_the_api_is(server: KubernetesServer) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert Api.of_pod(environ, server.directory) == Api("10.0.0.1", 443, server.directory)
    with pytest.raises(UnsafeConfiguration, match=r"KUBERNETES_SERVICE_HOST is not set\. Mount"):
        Api.of_pod({}, server.directory)
    (server.directory / "token").unlink()
    with pytest.raises(UnsafeConfiguration, match="token is missing"):
        Api.of_pod(environ, server.directory)
