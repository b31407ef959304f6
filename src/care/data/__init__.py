"""Data: examples, suites, published benchmarks, the small world, contamination."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.data import contamination as contamination
    from care.data.conversation import Conversation as Conversation
    from care.data.example import Example as Example
    from care.data.example import Suite as Suite
    from care.data.minimal_pairs import Pair as Pair
    from care.data.registry import load_suite as load_suite

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "contamination": [],
        "conversation": ["Conversation"],
        "example": ["Example", "Suite"],
        "minimal_pairs": ["Pair"],
        "registry": ["load_suite"],
    },
)
