"""What a release says of itself: supported versions, how it is cited, published and told of faults."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from packaging.version import Version
from paths import ROOT
from test_versions import METADATA, REQUIREMENTS, pins

import vdm_diffusers


WORKFLOWS = ROOT / ".github" / "workflows"
PUBLISH = yaml.safe_load((WORKFLOWS / "publish.yml").read_text())


def step(name: str) -> str:
    """The shell commands of a step that publishes."""
    (found,) = [step["run"] for step in PUBLISH["jobs"]["build"]["steps"] if name in step.get("name", "")]
    return found


def run(script: str, folder, tag: str) -> int:
    github = {"GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "owner/name", "GITHUB_REF_NAME": tag}
    return subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=os.environ | github).returncode


def test_the_table_of_supported_versions_is_that_of_the_metadata():
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    (python, lowest, tested), *packages = rows
    minimums = {requirement.name: requirement.specifier for requirement in REQUIREMENTS}
    assert [name for name, *_ in packages[:3]] == ["torch", "diffusers", "transformers"]
    for name, minimum, pinned in packages:
        assert str(minimums[name]) == f">={minimum}" and pins("constraints.txt")[name] == Version(pinned)
    tested_by = yaml.safe_load((WORKFLOWS / "test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert python == "Python" and METADATA["python_requires"] == f">={lowest}"
    assert [lowest, tested] == [tested_by[0], tested_by[-1]]
    classifiers = {text.rpartition(" ")[2] for text in METADATA["classifiers"] if "Python :: 3." in text}
    assert classifiers == set(tested_by)


def test_the_changelog_begins_with_the_version():
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    version = Version(vdm_diffusers.__version__)
    assert heading.startswith(version.base_version)
    assert version.is_devrelease == heading.endswith("not yet released")


def test_the_citation_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # which the format wants
    assert citation["license"] == METADATA["license_expression"] and "version" not in citation
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Kingma", "Salimans", "Poole", "Ho"]


@pytest.mark.parametrize(
    ("tag", "code"), [(f"v{vdm_diffusers.__version__}", 0), ("v9.9", 1), (f"v{vdm_diffusers.__version__}.1", 1)]
)
def test_only_a_tag_of_the_version_is_published(tag, code):
    assert run(step("tag is the version"), ROOT, tag) == code


def test_links_of_the_published_front_page_lead_to_the_repository(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    assert run(step("links of the front page"), tmp_path, "v1") == 0
    before, after = (re.findall(r"(!?)\[[^]]*\]\(([^)]*)\)", (at / "README.md").read_text()) for at in (ROOT, tmp_path))
    assert len(before) == len(after)
    for (picture, link), (_, published) in zip(before, after, strict=True):
        kind = "raw" if picture else "blob"
        assert published == (link if link.startswith("https://") else f"https://git.example/owner/name/{kind}/v1/{link}")


def test_publishing_needs_no_token_and_pins_what_it_runs():
    assert PUBLISH["jobs"]["publish"]["permissions"] == {"id-token": "write"} and "secrets." not in str(PUBLISH)
    actions = [step["uses"] for job in PUBLISH["jobs"].values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v[\d.]+", action) for action in actions)


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda form: form.stem)
def test_forms_of_issues_are_whole(form):
    form = yaml.safe_load(form.read_text())
    assert form["name"] and form["description"]
    identifiers = [part["id"] for part in form["body"]]
    assert len(set(identifiers)) == len(identifiers) > 0 and all(part["attributes"]["label"] for part in form["body"])
