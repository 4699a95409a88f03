"""Lists the pods of a runner's own namespace, as the pod's service account. Blocking: to be called in a thread."""

import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import quote, urlencode

from entityq.errors import UnsafeConfiguration
from entityq.kubernetes.pods import Pod, decode_message, decode_page

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Of one list: seconds, bytes of all its pages, pods of a page.
DEADLINE = 5.0
MAX_BYTES = 32 * 1024 * 1024
PAGE = 500

_BLOCK = 65_536
_ADVICE = ". Give the service account the right to list pods in its namespace"


class KubernetesError(Exception):
    """The list could not be read; says what was asked and what came. Never holds the token."""


@dataclass(frozen=True, slots=True)
class Api:
    """Where the Kubernetes API is, and the directory of the service account: token, namespace, ca.crt."""

    host: str
    port: int
    directory: Path

    @classmethod
    def of_pod(cls, environ: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> "Api":
        """As Kubernetes tells every pod. Raises UnsafeConfiguration outside of one."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        missing = [name for name in ("token", "namespace", "ca.crt") if not (directory / name).is_file()]
        if not host or not port.isdecimal() or missing:
            what = f"{directory / missing[0]} is missing" if missing else "KUBERNETES_SERVICE_HOST is not set"
            raise UnsafeConfiguration(
                f"runner_health is k8s, but this is no pod with a service account: {what}.",
                advice="Mount the service account's token, or set ENTITYQ_RUNNER_HEALTH to ping.",
            )
        return cls(host, int(port), directory)


class PodList:
    """The pods of the service account's namespace that match a label selector (empty: all)."""

    def __init__(
        self, api: Api, selector: str = "", *, deadline: float = DEADLINE, max_bytes: int = MAX_BYTES
    ) -> None:
        """`deadline` in seconds, `max_bytes` of all pages together."""
        self._api = api
        self._selector = selector
        self._deadline = deadline
        self._max_bytes = max_bytes

    def read(self) -> list[Pod]:
        """Raises KubernetesError, also when the list is too long or takes too long."""
        ends = time.monotonic() + self._deadline
        try:
            # Token and certificate are replaced while the pod runs.
            token = _token(self._api.directory)
            trust = ssl.create_default_context(cafile=self._api.directory / "ca.crt")
            namespace = (self._api.directory / "namespace").read_text(encoding="utf-8").strip()
            connection = HTTPSConnection(
                self._api.host, self._api.port, timeout=self._deadline, context=trust
            )
            try:
                return self._pages(connection, namespace, token, ends)
            finally:
                connection.close()
        except (OSError, HTTPException, ValueError) as error:
            raise self._error(f"{type(error).__name__}: {error}") from error

    def _pages(self, connection: HTTPConnection, namespace: str, token: str, ends: float) -> list[Pod]:
        pods: list[Pod] = []
        left, more = self._max_bytes, ""
        while True:
            asked = {"limit": str(PAGE)}
            if self._selector:
                asked["labelSelector"] = self._selector
            if more:
                asked["continue"] = more
            path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods?{urlencode(asked)}"
            body = self._get(connection, path, token, left, ends)
            left -= len(body)
            page = decode_page(body)
            pods += page.pods
            more = page.more
            if not more:
                return pods

    def _get(self, connection: HTTPConnection, path: str, token: str, left: int, ends: float) -> bytes:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": "entityq"}
        connection.request("GET", path, headers=headers)
        # Of each read: with the look at the clock between them, at most twice the deadline in all.
        connection.sock.settimeout(self._remaining(ends))
        response = connection.getresponse()
        body = self._body(response, left, ends)
        if response.status != 200:
            reason = decode_message(body) or "no reason given"
            advice = _ADVICE if response.status in {401, 403} else ""
            raise self._error(f"{response.status} {response.reason}: {reason}{advice}")
        return body

    def _body(self, response: HTTPResponse, left: int, ends: float) -> bytes:
        parts: list[bytes] = []
        while part := response.read1(_BLOCK):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise self._error(
                    f"a list of more than {self._max_bytes:,} bytes: set ENTITYQ_KUBERNETES_SELECTOR"
                )
            self._remaining(ends)
        return b"".join(parts)

    def _remaining(self, ends: float) -> float:
        remaining = ends - time.monotonic()
        if remaining <= 0:
            raise self._error(f"no whole list within {self._deadline:g} s")
        return remaining

    def _error(self, what: str) -> KubernetesError:
        return KubernetesError(f"Kubernetes API at {self._api.host}:{self._api.port}, list of pods: {what}")


def _token(directory: Path) -> str:
    token = (directory / "token").read_text(encoding="ascii", errors="replace").strip()
    # Checked here: the error of the HTTP library quotes it.
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"{directory / 'token'} holds no token")
    return token
