"""What the Hub lists of a repository, and how many bytes of each file aren't here yet.

Nothing is fetched. The Hub is asked whether it answers, and then once for each repository; where it
doesn't answer, or is switched off (HF_HUB_OFFLINE), no listing is asked for, so that nobody waits
for each in turn. Not here: which of the files a job needs (`to_fetch`).
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants

RepositoryKind = Literal["model", "dataset"]

SECONDS = 5
"""How long the Hub may take to answer."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision."""

    files: Mapping[str, int | None]
    """Bytes that would be fetched of each: none of one that is here, None where no size is told."""
    untold: str = ""
    """Why there is no listing, as the end of a sentence."""


@dataclass
class Hub:
    """The Hub as one command asks it: each question once."""

    _silence: str | None = None
    _listings: dict[tuple[str, str | None, RepositoryKind], Listing] = field(
        default_factory=dict[tuple[str, "str | None", RepositoryKind], Listing]
    )

    @property
    def silence(self) -> str:
        """Why it can't be asked, as the end of a sentence; empty where it answers."""
        if self._silence is None:
            self._silence = _silence()
        return self._silence

    def listing(self, name: str, revision: str | None, kind: RepositoryKind) -> Listing:
        """What it lists of a repository; of no revision, of its main one."""
        key = (name, revision, kind)
        if key not in self._listings:
            self._listings[key] = self._asked(name, revision, kind)
        return self._listings[key]

    def _asked(self, name: str, revision: str | None, kind: RepositoryKind) -> Listing:
        if self.silence:
            return Listing({}, self.silence)
        from huggingface_hub import HfApi

        try:
            info: Any = HfApi().repo_info(
                name, revision=revision, repo_type=kind, timeout=SECONDS, files_metadata=True
            )
        except Exception as error:  # of its own, of httpx, and of what both are built on
            why, answered = _refusal(error, name, revision)
            if not answered:
                self._silence = why
            return Listing({}, why)
        place = _Place(name, kind, info.sha or revision)
        return Listing({f.rfilename: 0 if place.holds(f) else f.size for f in info.siblings or ()})


def _silence() -> str:
    if constants.HF_HUB_OFFLINE:
        return "the Hub is switched off by HF_HUB_OFFLINE"
    asked = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{constants.ENDPOINT} doesn't answer ({getattr(error, 'reason', error)})"


def _refusal(error: Exception, name: str, revision: str | None) -> tuple[str, bool]:
    """Why there is no listing, and whether the Hub did answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return f"{name} is no name that the Hub could have", True
    if isinstance(error, errors.GatedRepoError):
        return f"the Hub wants the terms of {name} to be accepted, and a login", True
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no {name}, or shows it only after a login", True
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub has no revision {revision} of {name}", True
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub refuses with status {error.response.status_code}", True
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{constants.ENDPOINT} doesn't answer ({said})", False


@dataclass(frozen=True)
class _Place:
    """Where the files of a repository lie in the cache."""

    name: str
    kind: RepositoryKind
    revision: str | None

    def holds(self, file: Any) -> bool:
        """Whether a listed file is there, under this commit or another with the same content."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.file_download import repo_folder_name

        found = try_to_load_from_cache(
            self.name, file.rfilename, revision=self.revision, repo_type=self.kind
        )
        if isinstance(found, str):
            return True
        content = file.lfs["sha256"] if file.lfs else file.blob_id
        folder = repo_folder_name(repo_id=self.name, repo_type=self.kind)
        return (
            bool(content) and (Path(constants.HF_HUB_CACHE) / folder / "blobs" / content).is_file()
        )
