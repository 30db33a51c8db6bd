"""Declared versions are those that are tested: `setup.py`, `constraints.txt` and `constraints-lowest.txt` agree."""

import runpy
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT


NOT_IN_TEST_LOWEST = {"all", "browser", "demo", "dev", "docs", "fid"}


def metadata() -> dict:
    """The arguments that `setup.py` gives."""
    given = {}
    setuptools = SimpleNamespace(setup=given.update, find_packages=lambda **_: [])
    with patch.dict(sys.modules, setuptools=setuptools):
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(package) for package, _ in pairs}) == len(pairs), f"{name} pins a package twice"
    return {canonicalize_name(package): Version(version) for package, version in pairs}


METADATA = metadata()
REQUIREMENTS = [Requirement(text) for text in METADATA["install_requires"]]
EXTRAS = {extra: [Requirement(text) for text in texts] for extra, texts in METADATA["extras_require"].items()}
TESTED = {text for extra, texts in EXTRAS.items() if extra not in NOT_IN_TEST_LOWEST for text in texts} | set(REQUIREMENTS)
ALL = TESTED.union(*EXTRAS.values())


@pytest.mark.parametrize("requirement", sorted(TESTED, key=str), ids=str)
def test_a_declared_minimum_is_the_lowest_version_that_is_tested(requirement):
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    assert Version(bound.version) == pins("constraints-lowest.txt")[canonicalize_name(requirement.name)]


@pytest.mark.parametrize("requirement", sorted(ALL, key=str), ids=str)
def test_the_versions_of_constraints_are_among_those_declared(requirement):
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier
