"""What every test shares: no network, groups and their time, models, a browser."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Generator

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

# How much is drawn where a test doesn't say: `--hypothesis-profile=full` draws more.
settings.register_profile("fast", max_examples=10, deadline=None)
settings.register_profile("full", max_examples=100, deadline=None)
settings.load_profile("fast")

STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget", type=float, metavar="SECONDS", help="fail if the run takes longer than this"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run over its budget fails, even if every test passed."""
    if _over(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if seconds := _over(config):
        terminalreporter.write_line(
            f"This run took {seconds:.0f} s, more than its budget of "
            f"{config.getoption('budget'):.0f} s; make the slowest tests faster or mark them slow.",
            red=True,
        )


def _over(config: pytest.Config) -> float | None:
    """Seconds that a run with a budget took, if these are more."""
    budget, seconds = config.getoption("budget"), time.monotonic() - config.stash[STARTED]
    return seconds if budget is not None and seconds > budget else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is there after the imports stays, so nothing looks for garbage in it.

    A million objects of torch, transformers and the tests: going over them takes half a second, and
    the package does so itself between two models.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that need the embedded model last, so that a simple mistake shows first."""
    items.sort(key=lambda item: item.get_closest_marker("embedded") is not None)


@pytest.fixture(scope="module")
def vlm():
    """A tiny model, in which transformers has installed the hooks that it adds on first use."""
    from kit import tiny

    made = tiny.tiny_vlm()
    made.forward(made.batch(tiny.mixed_examples(5)))
    return made


@pytest.fixture(scope="module")
def batch(vlm):
    """Prompts with and without pictures, and the beginning of an answer to each."""
    from kit import tiny

    examples = tiny.mixed_examples(5)
    return vlm.batch(examples, ["I'm sorry."] * len(examples))


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
