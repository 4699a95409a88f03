"""Pods, as far as the health of the runners in them goes: decoded, and judged. No input, no output."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

# Of a host's name in Linux; the kubelet cuts the names of pods to it.
_LONGEST_HOST = 63


@dataclass(frozen=True, slots=True)
class Pod:
    """`host`: what its processes see as their host's name. `problem`: empty, or why it should not have work."""

    host: str
    problem: str


@dataclass(frozen=True, slots=True)
class Page:
    """Of a list of pods; `more` asks for the next one, and is empty on the last."""

    pods: tuple[Pod, ...]
    more: str


def decode_page(data: bytes) -> Page:
    """Raises ValueError, without the data in it, for what is no list of pods."""
    try:
        page = _PodList.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"no list of pods: {first['msg']}{where and f' ({where})'}") from None
    pods = tuple(Pod(_host(pod), _problem(pod)) for pod in page.items or ())
    return Page(pods, page.metadata.more or "")


def decode_message(data: bytes) -> str:
    """What the API says in an error; empty when that is not what it is."""
    try:
        return _Status.model_validate_json(data).message[:300]
    except ValidationError:
        return ""


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class _Condition(_Model):
    type: str
    status: str
    last_transition_time: str | None = None


class _PodMetadata(_Model):
    name: str
    deletion_timestamp: str | None = None


class _PodSpec(_Model):
    hostname: str | None = None


class _PodStatus(_Model):
    phase: str | None = None
    conditions: list[_Condition] | None = None


class _Pod(_Model):
    metadata: _PodMetadata
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _ListMetadata(_Model):
    more: str | None = Field(default=None, alias="continue")


class _PodList(_Model):
    metadata: _ListMetadata = _ListMetadata()
    items: list[_Pod] | None  # null where Go has an empty list


class _Status(_Model):
    message: str


def _host(pod: _Pod) -> str:
    return (pod.spec.hostname or pod.metadata.name)[:_LONGEST_HOST].rstrip("-.")


def _problem(pod: _Pod) -> str:
    if pod.metadata.deletion_timestamp:
        return "its pod is being deleted"
    if pod.status.phase in {"Failed", "Succeeded"}:
        return f"its pod has ended ({pod.status.phase})"
    if pod.status.phase == "Pending":
        return ""
    for condition in pod.status.conditions or ():
        # One that has no time of its last change has never been anything else: it is still starting.
        if condition.type == "Ready" and condition.status != "True" and condition.last_transition_time:
            return f"its pod is not ready since {condition.last_transition_time}"
    return ""
