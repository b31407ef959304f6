"""What every test shares: no network, the order of the groups, the embedded model, a browser."""

from __future__ import annotations

import os
import shutil

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that need the embedded model last, so that a simple mistake shows first."""
    items.sort(key=lambda item: item.get_closest_marker("embedded") is not None)


@pytest.fixture(scope="session")
def embedded_vlm():
    """The embedded model in its default precision, assembled on first use.

    Offline and never assembled, it is skipped on a person's machine and an error in CI.
    """
    from care.errors import DownloadError
    from care.models.vlm import VLM

    try:
        return VLM.embedded()
    except DownloadError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome that can run headless."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here; on Debian: apt-get install chromium")
