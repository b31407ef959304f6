"""Fits that are kept: read back where they can be stored, else made anew; failures are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from care.defenses.base import Defense
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.defenses.rivals.hiddendetect import HiddenDetect
from care.errors import (
    ArtefactError,
    FitError,
    ModelError,
    NotFiniteError,
    StorageError,
    UsageError,
)
from care.models.vlm import VLM
from care.pipeline.fits import Fits, timed
from care.pipeline.overheads import overheads
from care.runs.run import Run
from kit import tiny


@dataclass
class Unstored(Defense):
    """A stand-in that can't be stored."""

    name: str = "unstored"


class Elsewhere(Unstored):
    """A stand-in of another model."""

    def check(self, vlm: VLM) -> None:
        raise ArtefactError("it was made for another model")


def steering() -> Defense:
    return DifferenceOfMeans(layers=(1,), direction=np.ones((1, 32)))


def without_threshold() -> Defense:
    """What no file holds, as a fit that comes to NaN leaves it."""
    return HiddenDetect(layers=(1, 2), tokens=(3,), threshold=np.nan)


@pytest.fixture
def run(tmp_path: Path):
    with Run(tmp_path / "run", config={}) as run:
        yield run


def never() -> tuple[Defense, float]:
    raise AssertionError("it was fitted already")


def test_a_stored_fit_is_read_back_with_its_seconds(run: Run, vlm: VLM) -> None:
    with Fits(run, vlm) as fits:
        first = fits.made("one, setting 1", lambda: (steering(), 2.5))
    with Fits(run, vlm) as fits:
        again = fits.made("one, setting 1", never)
    assert again.defense is not None and first.defense is not None
    assert again.defense.digest() == first.defense.digest()
    assert (again.seconds, again.folder) == (2.5, run.path / "fits" / "one-setting-1")


def test_one_that_cannot_be_stored_is_fitted_anew(run: Run, vlm: VLM) -> None:
    made = []
    for _ in range(2):
        with Fits(run, vlm) as fits:
            found = fits.made("two", lambda: (made.append(1), (Unstored(), 1.0))[1])
    assert len(made) == 2 and found.folder is None and found.failed is None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: timed(Elsewhere), "for another model"),
        (lambda: _fails(FitError("too few examples")), "too few examples"),
        (lambda: _fails(ModelError("no final norm")), "no final norm"),
        (lambda: _fails(UsageError("depths of nothing")), "depths of nothing"),
        (lambda: timed(without_threshold), "which JSON can't hold"),
    ],
)
def test_what_does_not_suit_is_told_once(run: Run, vlm: VLM, made, words) -> None:
    with Fits(run, vlm) as fits:
        assert words in str(fits.made("three", made).failed)
    with Fits(run, vlm) as fits:
        assert words in str(fits.made("three", never).failed)


def test_a_full_disk_is_no_failed_fit(run: Run, vlm: VLM) -> None:
    def full() -> tuple[Defense, float]:
        raise StorageError("the disk is full")

    with Fits(run, vlm) as fits, pytest.raises(StorageError):
        fits.made("four", full)


def _fails(error: Exception) -> tuple[Defense, float]:
    raise error


def test_overheads_are_ratios_of_the_same_answers_in_turns(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], []

    def answers(defense, vlm, batch, **how):
        asked.append(("none" if defense is None else defense.name, len(batch)))
        clock[0] += len(batch) * (1.0 if defense is None else float(defense.name))
        if len(asked) == 4:  # its seconds count, and no comparison ends for it
            raise NotFiniteError("no numbers", [None] * len(batch))

    monkeypatch.setattr("care.pipeline.overheads.answers_under", answers)
    monkeypatch.setattr("care.pipeline.overheads.time.perf_counter", lambda: clock[0])
    defenses: dict[str, Defense] = {"slow": Unstored("3.0"), "fast": Unstored("0.5")}
    found = overheads(vlm, defenses.items(), tiny.mixed_examples(20), 4)
    assert next(found) == ("slow", 3.0)
    assert asked == [("none", 16), ("none", 16), ("3.0", 16), ("none", 4), ("3.0", 4)]
    assert list(found) == [("fast", 0.5)]
    assert asked[5:] == [("none", 16), ("0.5", 16), ("none", 4), ("0.5", 4)]
