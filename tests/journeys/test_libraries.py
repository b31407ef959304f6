"""What is declared, what is locked and what is installed agree. torch is left to the Makefile."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
MACHINES = [
    {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_machine": machine,
        "implementation_name": "cpython",
        "extra": "",
    }
    for python in ("3.11", "3.12", "3.13", "3.14")
    for system, machine in [
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("win32", "AMD64"),
    ]
]


CORE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def _declared(*lists: list[str]) -> list[Requirement]:
    found = [Requirement(text) for texts in lists for text in texts]
    return [r for r in found if r.name not in ("torch", PROJECT["project"]["name"])]


DECLARED = _declared(CORE, *EXTRAS.values(), PROJECT["build-system"]["requires"])
TESTED = _declared(CORE, EXTRAS["dev"], EXTRAS["parquet"], EXTRAS["inspect"])


def _locked(name: str, machine: dict[str, str]) -> list[str]:
    """The versions that constraints.txt holds a package to on one kind of machine."""
    return [
        next(iter(r.specifier)).version
        for r in LOCKED
        if canonicalize_name(r.name) == canonicalize_name(name)
        and (r.marker is None or r.marker.evaluate(machine))
    ]


def _lower_bound(requirement: Requirement) -> str | None:
    return next((s.version for s in requirement.specifier if s.operator in (">=", "==")), None)


def test_every_locked_version_is_exact_and_names_no_address():
    assert len(LOCKED) > 100
    for requirement in LOCKED:
        assert requirement.url is None
        assert re.fullmatch(r"==[^*,+]+", str(requirement.specifier)), str(requirement)


def test_torch_and_what_it_brings_for_one_gpu_are_left_to_the_makefile():
    ours = re.compile(r"torch|torchvision|torchaudio|triton|(nvidia|cuda)-.*")
    assert not [r.name for r in LOCKED if ours.fullmatch(r.name)]


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_what_is_declared_is_locked_within_its_bounds_on_every_machine(requirement):
    for machine in MACHINES:
        versions = _locked(requirement.name, machine)
        assert len(versions) == 1, "run: make lock"
        assert requirement.specifier.contains(versions[0], prereleases=True), "run: make lock"


def test_no_package_is_held_to_two_versions_at_once():
    for name in {r.name for r in LOCKED}:
        for machine in MACHINES:
            assert len(_locked(name, machine)) <= 1, name


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_every_dependency_has_a_lower_bound(requirement):
    assert _lower_bound(requirement)


@pytest.mark.skipif(
    os.environ.get("CARE_LIBRARIES") != "oldest", reason="only `make test-oldest` installs them"
)
@pytest.mark.parametrize("requirement", TESTED, ids=str)
def test_the_lower_bounds_are_what_is_installed(requirement):
    """A bound under what the other packages ask for is never installed, so nothing tests it."""
    bound = SpecifierSet(f"=={_lower_bound(requirement)}")
    assert version(requirement.name) in bound
