"""Building blocks of the report's schema: bounded numbers, rates, intervals, outcome counts.

Constraints are metadata of `Annotated` hints, which `care.report.check` reads.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

OutcomeName = Literal["harmful", "refused", "degenerate", "safe"]
OUTCOMES: tuple[OutcomeName, ...] = ("harmful", "refused", "degenerate", "safe")


@dataclass(frozen=True)
class Range:
    """Closed bounds of a number, as metadata of an `Annotated` hint."""

    low: float = float("-inf")
    """Smallest allowed value."""
    high: float = float("inf")
    """Largest allowed value."""


@dataclass(frozen=True)
class Length:
    """Exact length of a list, as metadata of an `Annotated` hint."""

    n: int
    """Number of items."""


@dataclass(frozen=True)
class DataImage:
    """The string must be a base64 data URI of a raster image (so that it can't carry a script)."""


Share = Annotated[float, Range(0.0, 1.0)]
Change = Annotated[float, Range(-1.0, 1.0)]
ChangeGap = Annotated[float, Range(-2.0, 2.0)]
Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
NonNegative = Annotated[float, Range(0.0)]
Image = Annotated[str, DataImage()]


class Rate(TypedDict):
    """A share with its Wilson interval."""

    rate: Share
    low: Share
    high: Share


class RateChange(TypedDict):
    """A difference of two shares with its interval."""

    rate: Change
    low: Change
    high: Change


class Estimate(TypedDict):
    """Any figure with its interval (`care.statistics.Interval`), in the unit that the place says.

    `rate` is the figure; it need not be a share.
    """

    rate: float
    low: float
    high: float
    n: NotRequired[Count]


class ShareEstimate(TypedDict):
    """A share with its interval."""

    rate: Share
    low: Share
    high: Share
    n: NotRequired[Count]


class RandomBand(TypedDict):
    """A figure over random draws: mean and quantiles."""

    mean: float
    low: float
    high: float


class OutcomeCounts(TypedDict):
    """Answers counted by what they are; they add up to the suite's `n`."""

    harmful: Count
    refused: Count
    degenerate: Count
    safe: Count
