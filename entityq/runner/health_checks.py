"""Which health check a runner uses."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from entityq.config import Settings
from entityq.kubernetes.api import SERVICE_ACCOUNT, Api, PodList
from entityq.redis.control import ControlChannel
from entityq.runner.health import HealthCheck, NoCheck
from entityq.runner.ping_check import PingCheck
from entityq.runner.pod_check import PodCheck

# From the control channel and an incarnation.
NewHealthCheck = Callable[[ControlChannel, int], HealthCheck]


def health_checks(
    settings: Settings, environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT
) -> NewHealthCheck:
    """The checks of a runner's incarnations. Raises UnsafeConfiguration where `k8s` has nothing to ask."""
    if settings.runner_health == "k8s":
        by_pods = PodCheck(
            PodList(Api.of_pod(environ, service_account), settings.kubernetes_selector), socket.gethostname()
        )
        return lambda _control, _incarnation: by_pods
    if settings.runner_health == "ping":
        return lambda control, incarnation: PingCheck(control, incarnation, lease_time=settings.lease_time)
    return lambda _control, _incarnation: NoCheck()
