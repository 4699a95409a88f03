"""A real HTTPS server that speaks the part of the Kubernetes API that a runner needs: lists of pods."""

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from entityq.kubernetes.api import Api

NAMESPACE = "bank"
READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-23T10:00:00Z"}
NOT_READY = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-23T10:00:00Z"}

_HELD = 30.0


def pod(name: str, *conditions: object, phase: str = "Running", **metadata: object) -> dict[str, Any]:
    """As the API shows one; without conditions it is ready."""
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "bank"}, **metadata},
        "spec": {"containers": [{"name": "worker"}]},
        "status": {"phase": phase, "conditions": list(conditions or [READY])},
    }


@dataclass
class KubernetesServer:
    """What it answers is the test's to change. `requests`: paths with their queries, in order."""

    directory: Path
    port: int = 0
    pods: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    token: str = "first-token"
    page: int = 500
    requests: list[str] = field(default_factory=list[str])
    # Instead of a list; called with the request.
    fault: "Callable[[Request], None] | None" = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def api(self) -> Api:
        return Api("127.0.0.1", self.port, self.directory)

    def rotate(self, token: str) -> None:
        """Only the new token is good, and the pod has it."""
        self.token = token
        (self.directory / "token").write_text(token)


class _Server(ThreadingHTTPServer):
    kubernetes: KubernetesServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is not worth a traceback."""


class Request(BaseHTTPRequestHandler):
    """One request; the faults of tests use its methods."""

    protocol_version = "HTTP/1.1"

    @property
    def kubernetes(self) -> KubernetesServer:
        return cast("_Server", self.server).kubernetes

    def do_GET(self) -> None:
        self.kubernetes.requests.append(self.path)
        if self.headers["Authorization"] != f"Bearer {self.kubernetes.token}":
            self.status(401, "Unauthorized")
        elif self.kubernetes.fault is not None:
            self.kubernetes.fault(self)
        else:
            self.list_pods()

    def list_pods(self) -> None:
        parts = urlsplit(self.path)
        if parts.path != f"/api/v1/namespaces/{NAMESPACE}/pods":
            self.status(404, "the server could not find the requested resource")
            return
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        first = int(asked.get("continue", "0"))
        after = first + min(int(asked["limit"]), self.kubernetes.page)
        metadata = {"resourceVersion": "7"}
        if after < len(self.kubernetes.pods):
            metadata["continue"] = str(after)
        self.json(
            {
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": metadata,
                "items": self.kubernetes.pods[first:after],
            }
        )

    def status(self, code: int, message: str) -> None:
        self.json({"kind": "Status", "status": "Failure", "message": message, "code": code}, code)

    def json(self, document: object, code: int = 200) -> None:
        """In chunks, as the API sends long answers."""
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 1000):
            part = data[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def send(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hold(self) -> None:
        """Until the end of the test."""
        self.kubernetes.ended.wait(_HELD)
        self.close_connection = True

    def drip(self) -> None:
        """A little now and then, and never all of it."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.kubernetes.ended.wait(0.05):
            self.wfile.write(b" ")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def kubernetes_server(directory: Path) -> Generator[KubernetesServer]:
    """`directory` becomes that of a service account."""
    key = directory / "server.key"
    make_certificate(directory / "ca.crt", key)
    (directory / "namespace").write_text(NAMESPACE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "ca.crt", key)
    with _Server(("127.0.0.1", 0), Request) as server:
        server.daemon_threads = False  # so that none is left behind
        server.socket = context.wrap_socket(server.socket, server_side=True)
        kubernetes = KubernetesServer(directory, server.server_port)
        kubernetes.rotate("first-token")
        server.kubernetes = kubernetes
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), name="kubernetes")
        serving.start()
        try:
            yield kubernetes
        finally:
            kubernetes.ended.set()
            server.shutdown()
            serving.join()


def make_certificate(certificate: Path, key: Path) -> None:
    """For 127.0.0.1, signed by itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=kubernetes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
