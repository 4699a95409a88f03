"""What the list of pods says about runners (K8S-01)."""

import json
from typing import Any

import pytest

from entityq.kubernetes.pods import Page, Pod, decode_message, decode_page
from tests.support.kubernetes import NOT_READY, READY, pod

STARTING = {"type": "Ready", "status": "False", "lastTransitionTime": None}


def decode(*pods: dict[str, Any], **metadata: object) -> Page:
    return decode_page(json.dumps({"kind": "PodList", "metadata": metadata, "items": pods}).encode())


def problem(described: dict[str, Any]) -> str:
    (decoded,) = decode(described).pods
    return decoded.problem


def test_a_ready_pod_is_well() -> None:
    other = {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2026-11-23T10:00:00Z"}
    assert decode(pod("bank-0", other, READY)).pods == (Pod("bank-0", ""),)


def test_k8s_01_a_pod_without_a_transition_time_is_still_initializing() -> None:
    assert problem(pod("bank-0", STARTING)) == ""
    assert problem(pod("bank-0", {"type": "Ready", "status": "False"})) == ""
    assert problem(pod("bank-0", {"type": "Initialized", "status": "True"})) == ""
    assert problem({"metadata": {"name": "bank-0"}, "spec": {}, "status": {"conditions": None}}) == ""
    assert problem(pod("bank-0", NOT_READY, phase="Pending")) == ""


def test_a_pod_that_is_no_longer_ready_is_not_well() -> None:
    assert problem(pod("bank-0", NOT_READY)) == "its pod is not ready since 2026-11-23T10:00:00Z"
    assert problem(pod("bank-0", {**NOT_READY, "status": "Unknown"})).startswith("its pod is not ready")


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_is_not_well(phase: str) -> None:
    assert problem(pod("bank-0", phase=phase)) == f"its pod has ended ({phase})"


@pytest.mark.parametrize("phase", ["Running", "Pending"])
def test_a_pod_that_is_being_deleted_is_not_well_though_it_is_ready(phase: str) -> None:
    described = pod("bank-0", phase=phase, deletionTimestamp="2026-11-23T10:00:00Z")
    assert problem(described) == "its pod is being deleted"


def test_the_host_is_the_pods_name_as_the_kubelet_shortens_it() -> None:
    given = pod("bank-0")
    given["spec"]["hostname"] = "teller"
    long = pod("a" * 62 + "-b")
    assert [one.host for one in decode(given, long).pods] == ["teller", "a" * 62]


def test_pages() -> None:
    assert decode(pod("a"), **{"continue": "next"}).more == "next"
    assert decode(pod("a"), **{"continue": ""}).more == ""
    assert decode_page(b'{"kind":"PodList","items":null}') == Page((), "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"null",
        b"{}",
        b"[]",
        b'{"items":[{}]}',
        b'{"items":{}}',
        b'{"items":[{"metadata":{}}]}',
    ],
)
def test_what_is_no_list_of_pods(data: bytes) -> None:
    with pytest.raises(ValueError, match="no list of pods"):
        decode_page(data)


def test_an_error_does_not_repeat_what_came() -> None:
    with pytest.raises(ValueError) as caught:
        decode_page(b'{"items":[{"metadata":{"name":["secret"]}}]}')
    assert "items.0.metadata.name" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_messages_of_the_api() -> None:
    assert decode_message(b'{"kind":"Status","message":"pods is forbidden"}') == "pods is forbidden"
    assert decode_message(b"<html>") == ""
    assert len(decode_message(json.dumps({"message": "x" * 10_000}).encode())) == 300
