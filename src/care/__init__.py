"""Find where a vision-language model is unsafe, repair its activations without training, prove it.

The public names are below; everything else is an implementation detail of its module. Names are
imported on first use, because most of them need torch: `import care` and `care --help` don't.
"""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care import errors as errors
    from care._version import __version__ as __version__
    from care.data.example import Example as Example
    from care.data.example import Suite as Suite
    from care.data.registry import load_suite as load_suite
    from care.defenses.base import Defense as Defense
    from care.defenses.loading import load_defense as load_defense
    from care.defenses.repair.repair import Repair as Repair
    from care.diagnosis.full import diagnose as diagnose
    from care.evaluation.results import Results as Results
    from care.evaluation.runner import evaluate as evaluate
    from care.judges.registry import load_judge as load_judge
    from care.models.vlm import VLM as VLM

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_version": ["__version__"],
        "data.example": ["Example", "Suite"],
        "data.registry": ["load_suite"],
        "defenses.base": ["Defense"],
        "defenses.loading": ["load_defense"],
        "defenses.repair.repair": ["Repair"],
        "diagnosis.full": ["diagnose"],
        "errors": [],
        "evaluation.results": ["Results"],
        "evaluation.runner": ["evaluate"],
        "judges.registry": ["load_judge"],
        "models.vlm": ["VLM"],
    },
)
