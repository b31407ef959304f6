"""Judges: what became of an answer."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.judges.base import Judge as Judge
    from care.judges.base import Outcome as Outcome
    from care.judges.base import Verdict as Verdict
    from care.judges.config import JudgeConfig as JudgeConfig
    from care.judges.model_judge import Finding as Finding
    from care.judges.model_judge import ModelJudge as ModelJudge
    from care.judges.registry import load_judge as load_judge
    from care.judges.registry import register as register
    from care.judges.rules import RulesJudge as RulesJudge

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Judge", "Outcome", "Verdict"],
        "config": ["JudgeConfig"],
        "model_judge": ["Finding", "ModelJudge"],
        "registry": ["load_judge", "register"],
        "rules": ["RulesJudge"],
    },
)
