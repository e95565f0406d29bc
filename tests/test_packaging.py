"""What is released: the files of wheel and sdist, by rule and to the last one, and what they say of themselves.

Built from a copy that an earlier build has left things in. `make release-check` installs a wheel and runs the demo.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bco_ray

ROOT = Path(__file__).parents[1]
NAME = f"bco_ray-{bco_ray.__version__}"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IGNORED = shutil.ignore_patterns(
    ".git",
    ".*_cache",
    ".hypothesis",
    ".venv*",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "runs",
    "secrets",
    "node_modules",
)


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and from it the wheel, by the setuptools that is installed."""
    source, out = tmp_path_factory.mktemp("source") / "bco-ray", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=IGNORED)
    for left in ("build/lib/bco_ray/left.py", "bco_ray/__pycache__/left.cpython-311.pyc", "dist/left.whl"):
        (source / left).parent.mkdir(parents=True, exist_ok=True)
        (source / left).write_bytes(b"")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, sdist = sorted(out.iterdir(), key=lambda path: path.suffix, reverse=True)
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def metadata(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        return HeaderParser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())


def package_files() -> set[str]:
    """Without what the console's page is built from: that is for whoever has Node."""
    files = (path for path in (ROOT / "bco_ray").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {name for name in names if not name.startswith("bco_ray/console/source/")}


def test_the_wheel_is_the_package_and_nothing_else(built: Built) -> None:
    told = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) == package_files() | {f"{NAME}.dist-info/{name}" for name in told}
        assert wheel.read(f"{NAME}.dist-info/top_level.txt") == b"bco_ray\n"
    assert built.wheel.name == f"{NAME}-py3-none-any.whl"


def test_pages_migrations_and_types_are_package_files() -> None:
    files = package_files()
    assert {"bco_ray/py.typed", "bco_ray/pipeline/report.html", "bco_ray/storage/migrations/env.py"} <= files
    assert {"bco_ray/console/static/index.html", "bco_ray/console/static/licenses.txt"} <= files
    kinds = {".py", ".html", ".typed", ".js", ".css", ".svg", ".txt"}
    assert {Path(file).suffix for file in files} == kinds, "new kinds go into package-data, too"


def test_the_sdist_is_what_builds_the_wheel(built: Built) -> None:
    """The wheel was built from it; what else is there, setuptools writes."""
    with tarfile.open(built.sdist) as sdist:
        names = {entry.name.removeprefix(f"{NAME}/") for entry in sdist if entry.isfile()}
    ours = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml"}
    written = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("bco_ray.egg-info/"))}
    assert names == package_files() | ours | written
    assert built.sdist.name == f"{NAME}.tar.gz"


def test_metadata_is_complete(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("bco-ray", bco_ray.__version__)
    assert metadata["Summary"] == PROJECT["description"]
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert not [line for line in PROJECT["classifiers"] if line.startswith("License")], "the expression says it"


def test_extras_are_those_of_the_project(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    plain = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {Requirement(line) for line in plain} == {Requirement(line) for line in PROJECT["dependencies"]}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def asked_for() -> list[Requirement]:
    """By users and developers. The extras vllm, gpu and trackers are for other machines, and not pinned."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["dev"], *extras["postgresql"]]
    return [wanted for line in lines if (wanted := Requirement(line)).name != "setuptools"]  # pip does not freeze it


def test_constraints_fit_what_is_asked_for(pins: dict[str, str]) -> None:
    for wanted in asked_for():
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, wanted


def test_constraints_pin_whatever_comes_along(pins: dict[str, str]) -> None:
    """What the installed packages need here, and need in turn. A torch for CUDA brings its own libraries."""
    todo, seen = asked_for(), set[str]()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if str(wanted) not in seen and name not in {"setuptools", "pip"}:
            seen.add(str(wanted))
            assert name in pins, f"{name}: is installed, but not in constraints.txt (make constraints)"
            todo += [] if name == "torch" else needs(wanted)


def needs(wanted: Requirement) -> list[Requirement]:
    """What an installed package asks for on this machine; nothing of one that is not installed yet."""
    try:
        found = [Requirement(line) for line in importlib.metadata.requires(wanted.name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    extras = ["", *wanted.extras]
    return [one for one in found if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)]


def test_the_command_can_be_loaded(built: Built) -> None:
    points = configparser.ConfigParser()
    with zipfile.ZipFile(built.wheel) as wheel:
        points.read_string(wheel.read(f"{NAME}.dist-info/entry_points.txt").decode())
    assert {section: dict(points[section]) for section in points.sections()} == {
        "console_scripts": {"bco": "bco_ray.cli:main"}
    }
    point = importlib.metadata.EntryPoint("bco", points["console_scripts"]["bco"], "console_scripts")
    assert callable(point.load())


def test_twine_accepts_both(built: Built) -> None:
    pytest.importorskip("twine", reason="twine is not installed (make install)")
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_release_check_installs_as_the_makefile_does() -> None:
    """torch first and by itself, both held to constraints.txt."""
    lines = [line for line in (ROOT / ".ci/release-check").read_text().splitlines() if " install " in line]
    assert [line.split()[-1] for line in lines] == ["pip", "torch", "dist/*.whl"]
    assert all('--constraint "$constraints"' in line for line in lines[1:])


def test_whatever_names_a_version_names_this_one() -> None:
    """Tags of the image, the label in it."""
    places = [ROOT / "cluster.yaml", *(path for name in ("docs", "jobs", "serve") for path in (ROOT / name).rglob("*"))]
    texts = {path: path.read_text() for path in places if path.suffix in {".yaml", ".md"} or path.name == "Dockerfile"}
    said = re.compile(r"(?:bco-ray:|BCO_TAG:-|ARG VERSION=)(\d[\w.]*)")
    found = {(path.name, version) for path, text in texts.items() for version in said.findall(text)}
    assert {name for name, _ in found} >= {"cluster.yaml", "compose.yaml", "Dockerfile", "rayservice.yaml"}
    assert {version for _, version in found} == {bco_ray.__version__}, found


@pytest.fixture
def notes() -> Any:
    return runpy.run_path(str(ROOT / ".ci" / "release_notes.py"))["notes"]


PACKAGE = '"""Doc."""\n\n__version__ = "1.2.0"\n'
CHANGES = "# Changelog\n\n## 1.2.0 (2027-01-31)\n\n- New.\n\n## 1.1.0 (2026-12-31)\n\n- Old.\n"


def test_notes_of_a_release_are_its_part_of_the_changelog(notes: Any) -> None:
    assert notes("v1.2.0", PACKAGE, CHANGES) == "- New."
    assert notes("v1.2.0", PACKAGE, CHANGES.partition("## 1.1.0")[0]) == "- New."


@pytest.mark.parametrize(
    ("tag", "changes", "said"),
    [
        ("v1.2.1", CHANGES, "v1.2.1: bco_ray/__init__.py says 1.2.0"),
        ("1.2.0", CHANGES, "tag v1.2.0"),
        ("v1.2.0", CHANGES.replace("(2027-01-31)", "(unreleased)"), "begins with `1.2.0 (unreleased)`"),
        ("v1.2.0", CHANGES.replace("1.2.0 (", "1.3.0 ("), "begins with `1.3.0 (2027-01-31)`"),
    ],
)
def test_a_tag_that_says_something_else_is_refused(notes: Any, tag: str, changes: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        notes(tag, PACKAGE, changes)


def test_the_changelog_begins_with_this_version() -> None:
    heading = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")[2].partition("\n")[0]
    assert re.fullmatch(rf"{re.escape(bco_ray.__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", heading)
