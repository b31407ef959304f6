"""Statistics: intervals, paired tests, bootstrap over goals, power, moments. No torch."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.statistics.bootstrap import bootstrap_mean as bootstrap_mean
    from care.statistics.intervals import Interval as Interval
    from care.statistics.intervals import holm as holm
    from care.statistics.intervals import wilson as wilson
    from care.statistics.moments import Moments as Moments
    from care.statistics.paired import paired_difference as paired_difference

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "intervals": ["Interval", "wilson", "holm"],
        "bootstrap": ["bootstrap_mean"],
        "paired": ["paired_difference"],
        "moments": ["Moments"],
    },
)
