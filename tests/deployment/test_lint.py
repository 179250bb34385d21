"""The linters of Dockerfiles and manifests, where `make docker-check` has installed them."""

from __future__ import annotations

import pytest

from tests.deployment.programs import run, tool
from tests.structure.modules import ROOT

DEPLOYMENT = ROOT / "deployment"


def test_hadolint_finds_nothing() -> None:
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: make docker-check")
    run(hadolint, "--config", DEPLOYMENT / "hadolint.yaml", *DEPLOYMENT.glob("Dockerfile.*"))


def test_trivy_finds_nothing() -> None:
    """Kubernetes' manifests are looked at as they are rendered: patches are only parts of them."""
    trivy = tool("trivy")
    if trivy is None:
        pytest.skip("trivy is not installed: make docker-check")
    options = ["--quiet", "--skip-check-update", "--exit-code", "1"]
    run(trivy, "config", *options, "--skip-dirs", DEPLOYMENT / "kubernetes", DEPLOYMENT)
