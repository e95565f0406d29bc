"""What the clouds' metadata servers say, as they say it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bco_ray.errors import ClusterError
from bco_ray.nodes.notices import Amazon, Google, cloud_here

TOKEN, ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"
ID, PREEMPTED = "/computeMetadata/v1/instance/id", "/computeMetadata/v1/instance/preempted"


def test_amazon_announces_when(metadata: Any) -> None:
    metadata.pages[TOKEN] = ""
    cloud = Amazon()
    assert cloud.present()
    assert cloud.notice() is None
    metadata.pages[ACTION] = '{"action": "terminate", "time": "2027-09-18T08:22:00Z"}'
    notice = cloud.notice()
    assert notice is not None
    assert (notice.what, notice.at) == ("EC2 will terminate it", 1821255720.0)


def test_amazons_token_expires(metadata: Any) -> None:
    metadata.pages[TOKEN] = ""
    cloud = Amazon()
    assert cloud.present()
    metadata.tokens += 1
    assert cloud.notice() is None
    assert metadata.tokens == 3


@pytest.mark.parametrize("page", ['{"action": "stop"}', "soon", '{"action": "stop", "time": "soon"}', "[]", 500])
def test_amazons_nonsense_is_no_notice(metadata: Any, page: str | int) -> None:
    metadata.pages |= {TOKEN: "", ACTION: page}
    with pytest.raises(ClusterError):
        Amazon().notice()


def test_google_preempts_in_half_a_minute(metadata: Any) -> None:
    metadata.pages |= {ID: "17", PREEMPTED: "FALSE"}
    cloud = Google()
    assert cloud.present()
    assert cloud.notice() is None
    metadata.pages[PREEMPTED] = "TRUE"
    notice = cloud.notice()
    assert notice is not None
    assert notice.at == pytest.approx(time.time() + 30, abs=10)


@pytest.mark.parametrize(("page", "cloud"), [(TOKEN, Amazon), (ID, Google), ("/other", None)])
def test_each_cloud_knows_its_own_server(metadata: Any, page: str, cloud: Any) -> None:
    metadata.pages[page] = "17"
    found = cloud_here([Google(), Amazon()])
    assert (found and type(found)) == cloud


def test_where_nobody_listens_there_is_no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    assert cloud_here([Google(), Amazon()]) is None


def test_no_proxy_is_asked_for_a_machines_own_secrets(metadata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    metadata.pages[ID] = "17"
    assert Google().present()
