"""What is served is what was built from the sources that are here; and how it is served."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from bco_ray import console
from bco_ray.console.assets import INDEX, STATIC, load
from bco_ray.console.routes import POLICY

SOURCE = Path(console.__file__).with_name("source")
MOST_TRANSFERRED_BYTES = 200_000


def digest(folder: Path, counts: Callable[[str], bool]) -> str:
    """As `vite.config.ts` computes it: one line per file, the digest of its content and its path."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names) if counts(name)]
    return sha256("".join(lines).encode()).hexdigest()


def is_source(name: str) -> bool:
    return not name.startswith("node_modules/") and not name.endswith(".test.ts") and name != "built.json"


def test_the_assets_are_built_from_these_sources() -> None:
    now = {"sources": digest(SOURCE, is_source), "static": digest(STATIC, lambda _: True)}
    assert json.loads((SOURCE / "built.json").read_text()) == now, "they are not; run `make console`, and commit both"


def test_the_page_names_the_files_that_are_there() -> None:
    html = load()[INDEX].body.decode()
    named = set(re.findall(r'(?:src|href)="/console/([^"]+)"', html))
    assert named == set(load()) - {INDEX}
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {f"/console/{name}" for name in named}
    assert not re.search(r"<style|style=|<script(?![^>]*src=)|\son\w+=", html), "nothing inline"


def test_no_file_speaks_of_another_host() -> None:
    """But for names of XML, and what a library says of its home in an error."""
    for name, asset in load().items():
        hosts = set(re.findall(r"https?://([\w.-]+)", asset.body.decode()))
        assert hosts <= {"www.w3.org"}, (name, hosts)


def test_it_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    packed = sum(len(asset.packed) for asset in load().values())
    assert packed < MOST_TRANSFERRED_BYTES
    with capsys.disabled():
        print(f" the console: {packed / 1000:.1f} kB gzipped ", end="")  # noqa: T201


def test_how_it_is_sent(open_site: Callable[..., Any]) -> None:
    """Also without a key where there are keys."""
    site = open_site(guarded=True)
    with httpx.Client(base_url=site.url, timeout=30) as http:
        page = http.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["cache-control"] == "no-cache"
        assert http.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
        for name, asset in load().items():
            reply = http.get(f"/console/{name}")
            assert (reply.content, reply.headers["content-encoding"]) == (asset.body, "gzip")
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert ("immutable" in reply.headers["cache-control"]) == bool(re.search(r"-[\w-]{8}\.", name))
            plain = http.get(f"/console/{name}", headers={"accept-encoding": "identity"})
            assert plain.content == gzip.decompress(asset.packed)
            assert "content-encoding" not in plain.headers
        missing = http.get("/console/index-00000000.js")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert http.get("/console/../v1/models").status_code == 401
        assert http.post("/").status_code in (401, 405)
        assert http.get("/openapi.json").status_code == 401


def test_the_page_comes_by_a_name_of_this_machine_only(open_site: Callable[..., Any]) -> None:
    reply = httpx.get(open_site().url, headers={"host": "evil.example"}, timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.skipif(
    not (SOURCE / "node_modules").is_dir() or not shutil.which("npm"), reason="needs Node (make console)"
)
def test_the_parts_without_a_page() -> None:
    """Vitest's, of the sources."""
    done = subprocess.run(["npm", "test"], cwd=SOURCE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_libraries_in_it_come_with_their_licences() -> None:
    """By the versions that were built in."""
    told = (STATIC / "licenses.txt").read_text()
    for name, version in json.loads((SOURCE / "package.json").read_text())["dependencies"].items():
        assert f"--- {name} {version} ---" in told
