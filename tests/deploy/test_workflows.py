"""What GitHub is told to run, read: rights, pins, commands that exist. Every check is shown a broken copy.

check-jsonschema (PyPI) holds the files to GitHub's schema, where it is installed. Nothing here has run on GitHub.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import bco_ray

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
NAMES = ("nightly.yml", "release.yml", "test.yml")

RIGHTS = {
    ("release", "publish"): {"id-token": "write"},
    ("release", "page"): {"contents": "write"},
    ("release", "images"): {"contents": "read", "packages": "write"},
}
"""Who may do more than read."""

Workflow = dict[str, Any]


def problems(text: str) -> list[str]:
    """What is wrong with a workflow."""
    workflow = yaml.safe_load(text)
    checks = (rights, approval, pins, machines, commands, words, triggers, pythons)
    return [problem for check in checks for problem in check(workflow)]


def steps(workflow: Workflow) -> Iterator[tuple[str, Workflow]]:
    for name, job in workflow["jobs"].items():
        yield from ((name, step) for step in job.get("steps", []))


def rights(workflow: Workflow) -> Iterator[str]:
    if workflow.get("permissions") != {"contents": "read"}:
        yield "permissions: say {contents: read}, jobs that need more say so themselves"
    for name, job in workflow["jobs"].items():
        if job.get("permissions") != RIGHTS.get((workflow["name"], name)):
            yield f"{name}: permissions {job.get('permissions')}"
        if job.get("secrets"):
            yield f"{name}: secrets are handed on"
    for name, step in steps(workflow):
        if "checkout" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
            yield f"{name}: the token stays in .git for whatever runs next"


def approval(workflow: Workflow) -> Iterator[str]:
    """Nothing is let out before a person has approved `publish`, nor without what it publishes being tried."""
    for name, job in workflow["jobs"].items():
        if "write" in job.get("permissions", {}).values() and name != "publish" and job.get("needs") != "publish":
            yield f"{name}: does not wait for publish"
        if name == "publish" and (job.get("environment"), job.get("needs")) != ("pypi", ["test", "check"]):
            yield "publish: not in the environment that needs an approval, after test and check"


def pins(workflow: Workflow) -> Iterator[str]:
    """GitHub's own actions by major version, other people's by commit."""
    used = [step["uses"] for _, step in steps(workflow) if "uses" in step]
    for what in [*used, *(job["uses"] for job in workflow["jobs"].values() if "uses" in job)]:
        if what.startswith("./"):
            if not (ROOT / what).is_file():
                yield f"{what}: is not there"
        elif not re.fullmatch(r"actions/[\w-]+@v\d+|[\w-]+/[\w./-]+@[0-9a-f]{40}", what):
            yield f"{what}: not pinned"


def machines(workflow: Workflow) -> Iterator[str]:
    if "concurrency" not in workflow:
        yield "concurrency: two runs could meet"
    for name, job in workflow["jobs"].items():
        if "uses" not in job:
            if not re.fullmatch(r"ubuntu-\d\d\.04", job["runs-on"]):
                yield f"{name}: runs-on {job['runs-on']} changes by itself"
            if not job.get("timeout-minutes"):
                yield f"{name}: no timeout-minutes"


def commands(workflow: Workflow) -> Iterator[str]:
    """What is called is in the Makefile or in .ci, where a person can call it, too."""
    for name, step in steps(workflow):
        for target in re.findall(r"\bmake ([\w-]+)", step.get("run", "")):
            if target not in targets():
                yield f"{name}: make {target}: no such target"
        for script in re.findall(r"\.ci/[\w.-]+", step.get("run", "")):
            if not (ROOT / script).is_file():
                yield f"{name}: {script}: no such script"


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def words(workflow: Workflow) -> Iterator[str]:
    """What others may choose (a branch's name, a title) reaches a shell by the environment, not in its text."""
    for name, step in steps(workflow):
        if "${{" in step.get("run", ""):
            yield f"{name}: an expression inside `run`"
    if "secrets." in yaml.safe_dump(workflow):
        yield "a secret: the token of the run and OIDC do"


def triggers(workflow: Workflow) -> Iterator[str]:
    """`on` is YAML 1.1's word for true."""
    if "pull_request_target" in workflow[True]:
        yield "pull_request_target: strangers' code with our rights"
    if workflow["name"] == "release" and workflow[True] != {"push": {"tags": ["v*"]}}:
        yield "release: by a tag v*, nothing else"


def pythons(workflow: Workflow) -> Iterator[str]:
    """The oldest that the package takes is tested, and each that it claims."""
    claimed = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text())
    tested = workflow["jobs"].get("test", {}).get("strategy", {}).get("matrix", {}).get("python")
    if tested and not {"3.11", *claimed} <= set(tested):
        yield f"tested on {tested}, but pyproject.toml claims {claimed}"


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_has_no_problems(name: str) -> None:
    assert problems((FOLDER / name).read_text()) == []


def test_every_workflow_is_looked_at() -> None:
    assert tuple(sorted(path.name for path in FOLDER.iterdir())) == NAMES


BROKEN = {
    "all rights": ("test.yml", "permissions: {contents: read}\n", "", "permissions: say"),
    "more rights": ("release.yml", "{id-token: write}", "{id-token: write, contents: write}", "publish: permissions"),
    "token left": ("test.yml", "with: {persist-credentials: false}", "with: {}", "the token stays"),
    "no approval": ("release.yml", "    environment: pypi\n", "", "needs an approval"),
    "untried": ("release.yml", "needs: [test, check]", "needs: [check]", "after test and check"),
    "too early": ("release.yml", "  images:\n    needs: publish", "  images:\n    needs: check", "does not wait"),
    "branch": ("test.yml", "actions/checkout@v6", "actions/checkout@main", "not pinned"),
    "stranger": ("release.yml", "@ed0c53931b1dc9bd32cbe73a98c7f6766f8a527e", "@v1", "not pinned"),
    "lost": ("release.yml", "workflows/test.yml", "workflows/tests.yml", "is not there"),
    "machine": ("test.yml", "ubuntu-24.04", "ubuntu-latest", "changes by itself"),
    "endless": ("nightly.yml", "    timeout-minutes: 180\n", "", "no timeout"),
    "twice": ("nightly.yml", "concurrency: {group: nightly}\n", "", "concurrency"),
    "target": ("nightly.yml", "make soak", "make soack", "no such target"),
    "script": ("release.yml", ".ci/image", ".ci/images", "no such script"),
    "injection": ("release.yml", 'notes.py "$GITHUB_REF_NAME"', "notes.py ${{ github.ref_name }}", "expression inside"),
    "secret": ("release.yml", "${{ github.token }}", "${{ secrets.PYPI }}", "a secret"),
    "strangers": ("test.yml", "  pull_request:", "  pull_request_target:", "strangers' code"),
    "any push": ("release.yml", '{tags: ["v*"]}', "{branches: [main]}", "by a tag"),
    "python": ("test.yml", '["3.11", ', '["3.12", ', "claims"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_copy_is_noticed(broken: str) -> None:
    name, right, wrong, problem = BROKEN[broken]
    text = (FOLDER / name).read_text()
    assert right in text
    found = problems(text.replace(right, wrong))
    assert any(problem in one for one in found), found


def conforms(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_workflows_fit_the_schema_of_github(tmp_path: Path) -> None:
    done = conforms(*(FOLDER / name for name in NAMES))
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "test.yml"
    wrong.write_text((FOLDER / "test.yml").read_text().replace("timeout-minutes", "timeout-minute"))
    assert "timeout-minute" in conforms(wrong).stdout


DOCKER = """#!/bin/sh
echo "$@" >> "$CALLS"
"""


def image(tmp_path: Path, kind: str) -> tuple[int, list[str]]:
    """The exit status of .ci/image, and what it asks of docker, which here only writes it down."""
    docker, calls = tmp_path / "docker", tmp_path / "calls"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    calls.touch()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)}
    command = ["bash", str(ROOT / ".ci/image"), kind, "ghcr.io/acme/bco-ray"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_image_has_the_tag_that_the_cluster_files_name(tmp_path: Path, kind: str) -> None:
    status, (build, run, push) = image(tmp_path, kind)
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"]
    tag = cluster.rpartition("/")[2].replace("-cuda", f"-{kind}")
    assert status == 0
    assert push == f"push ghcr.io/acme/{tag}"
    assert run == f"run --rm ghcr.io/acme/{tag} bco env"
    assert f"--build-arg VERSION={bco_ray.__version__} " in build
    assert ("whl/cpu" in build) == (kind == "cpu")


def test_an_image_of_no_kind_is_refused(tmp_path: Path) -> None:
    assert image(tmp_path, "rocm") == (2, [])
