"""A Hub that lists repositories from memory: no network, and a cache of its own."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Info:
    """What it says of a repository."""

    siblings: list[RepoSibling]
    sha: str = COMMIT


def _file(name: str, size: int | None) -> RepoSibling:
    """Large ones are stored apart, under a digest of their own."""
    large = BlobLfsInfo(size=size, sha256=f"content of {name}", pointer_size=1)
    return RepoSibling(name, size, f"blob of {name}", large if (size or 0) > 10**7 else None)


@dataclass
class FakeHub:
    """What it lists, and what it was asked."""

    cache: Path
    """Its cache on this machine."""
    listed: dict[str, dict[str, int | None] | Exception] = field(default_factory=dict)
    """Bytes of the files of each repository, or what is raised for it."""
    asked: list[tuple[str, str | None, str]] = field(default_factory=list)
    """Repositories that it was asked for, with revision and kind."""
    heads: int = 0
    """How often it was asked whether it answers."""
    silent: bool = False
    """Whether it doesn't."""

    def repo_info(
        self, name: str, *, revision: Any, repo_type: str, timeout: float, files_metadata: bool
    ) -> Info:
        """As that of `HfApi`."""
        assert files_metadata and timeout <= 10
        self.asked.append((name, revision, repo_type))
        found = self.listed[name]
        if isinstance(found, Exception):
            raise found
        return Info([_file(n, size) for n, size in found.items()])

    def keep(self, name: str, *files: str, kind: str = "model", revision: str = COMMIT) -> Path:
        """Put files into the cache, empty; the folder of their commit."""
        repository = self.cache / f"{kind}s--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
        commit = repository / "snapshots" / revision
        for file in files:
            (commit / file).parent.mkdir(parents=True, exist_ok=True)
            (commit / file).touch()
        return commit


def refused(kind: type[Exception], status: int) -> Exception:
    """An error of the Hub's own, as of a request that it refused."""
    made = kind.__new__(kind)  # which class of response it wants depends on the release
    Exception.__init__(made, "refused")
    made.response = httpx.Response(status)  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    """The Hub is this one, and it answers."""
    fake = FakeHub(tmp_path / "hub")

    def head(asked: Any, timeout: float) -> Any:
        assert asked.full_url == constants.ENDPOINT and timeout <= 10
        fake.heads += 1
        if fake.silent:
            raise urllib.error.URLError("timed out")
        return contextlib.nullcontext()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fake.cache))
    monkeypatch.setattr(urllib.request, "urlopen", head)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake
