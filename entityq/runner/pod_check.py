"""Runner health by `k8s`: a runner whose pod is not ready, or gone, is unhealthy."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from entityq.kubernetes.api import KubernetesError, PodList
from entityq.kubernetes.pods import Pod
from entityq.postgres.membership import Member
from entityq.runner.health import Judgement

_log = logging.getLogger(__name__)

# Seconds. Together the runners of a large cluster list the pods 5 times a second.
_PAUSE = 10.0
_SECONDS_PER_RUNNER = 0.2


class PodCheck:
    """A runner is in the pod whose host name it has."""

    def __init__(self, pods: PodList, host: str, *, pause: float = _PAUSE) -> None:
        """`host`: of this runner, whose own pod shows that the list is one of runners."""
        self._pods = pods
        self._host = host
        self._pause = pause
        self._failing = False
        # Not the loop's own threads: the end of the loop would wait for a list that does not come.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entityq pods")

    def pause(self, runners: int) -> float:
        return max(self._pause, runners * _SECONDS_PER_RUNNER)

    async def look(self, peers: Sequence[Member]) -> Mapping[int, Judgement]:
        """Nobody is judged by a list that could not be read; that is logged once per outage."""
        try:
            loop = asyncio.get_running_loop()
            problems = self._problems(await loop.run_in_executor(self._thread, self._pods.read))
        except KubernetesError as error:
            if not self._failing:
                _log.warning("health.no_judgement by k8s, until this works: %s", error)
            self._failing = True
            return {}
        if self._failing:
            _log.info("health.judging by k8s again")
        self._failing = False
        gone = f"no pod has its host's name ({len(problems)} listed)"
        return {
            peer.incarnation: Judgement(healthy=not (reason := problems.get(peer.host, gone)), reason=reason)
            for peer in peers
        }

    def _problems(self, pods: Sequence[Pod]) -> Mapping[str, str]:
        """By host. Where several pods have a host's name, it is enough that one is well."""
        problems: dict[str, str] = {}
        for pod in pods:
            problems[pod.host] = pod.problem and problems.get(pod.host, pod.problem)
        if self._host not in problems:
            raise KubernetesError(
                f"This runner's own pod, {self._host}, is not among the {len(pods)} listed. Does "
                "ENTITYQ_KUBERNETES_SELECTOR match the runners' pods, and is the host's name the pod's?"
            )
        return problems
