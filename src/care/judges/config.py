"""What judges are asked for by: a configuration each, whose fields are the options of `--judge`.

    harmbench,model=/models/hb,batch_size=4   →   ClassifierConfig(…, batch_size=4).judge(rules)

A configuration needs no torch and loads nothing until it is asked for its judge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

from care.judges.base import Judge
from care.judges.prompts import read_template
from care.judges.rules import RulesJudge
from care.runs.settings import MAX_BATCH, require

Scale = Literal["yes_no", "grade"]


FIXED = {"fixed": True}
"""Marks a field that is the registered judge's own, and no option of it."""


@dataclass(frozen=True)
class JudgeConfig(ABC):
    """Which judge, and how it is asked."""

    name: str = field(default="", metadata=FIXED)
    """Name in verdicts and tables."""

    @property
    def reads_images(self) -> bool:
        """Whether the judge must see the pictures of a request."""
        return False

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise what can be told without loading a model, such as a file that can't be read."""

    @abstractmethod
    def judge(self, rules: RulesJudge) -> Judge:
        """The judge, loaded; `rules` tell refusals and broken text."""


@dataclass(frozen=True)
class RulesConfig(JudgeConfig):
    """The offline judge."""

    def judge(self, rules: RulesJudge) -> Judge:
        if self.name == rules.name:
            return rules
        other = copy(rules)
        other.name = self.name
        return other


@dataclass(frozen=True)
class HubConfig(JudgeConfig):
    """A judge from the Hub."""

    model: str = ""
    """Name on the Hub, or a folder."""
    revision: str | None = None
    """Revision on the Hub; what was loaded is recorded in any case."""
    dtype: str = "auto"
    """Floating-point type."""
    device_map: str | None = None
    """As in transformers."""
    batch_size: int = 8
    """Answers read at once, halved where memory doesn't suffice; with pictures it is one."""

    def __post_init__(self) -> None:
        require(self, {"batch_size": 1}, MAX_BATCH)


@dataclass(frozen=True)
class ClassifierConfig(HubConfig):
    """A classifier that answers an official prompt with one token (`classifiers`)."""

    scale: Scale = field(default="yes_no", metadata=FIXED)
    """What the first token of its answer is."""
    template: str | None = None
    """Text file with the official prompt; None: the model's card."""
    max_response_tokens: int = 512
    """Tokens of an answer that are judged."""

    def __post_init__(self) -> None:
        require(self, {"batch_size": 1, "max_response_tokens": 1}, MAX_BATCH)

    def check(self) -> None:
        if self.template is not None:
            read_template(self.template)

    def judge(self, rules: RulesJudge) -> Judge:
        from care.judges.classifiers import TokenClassifier

        return TokenClassifier.load(self, rules)


@dataclass(frozen=True)
class GuardConfig(HubConfig):
    """A guard that reads the request and the answer (`guards`)."""

    vision: bool = field(default=False, metadata=FIXED)
    """Whether it sees the pictures of the request."""

    @property
    def reads_images(self) -> bool:
        return self.vision

    def judge(self, rules: RulesJudge) -> Judge:
        from care.judges.guards import GuardJudge

        return GuardJudge.load(self, rules)


@dataclass(frozen=True)
class PictureConfig(HubConfig):
    """A judge of the request's pictures alone (`shieldgemma`)."""

    @property
    def reads_images(self) -> bool:
        return True

    def judge(self, rules: RulesJudge) -> Judge:
        from care.judges.shieldgemma import ShieldGemmaJudge

        return ShieldGemmaJudge.load(self, rules)


@dataclass(frozen=True)
class DetoxifyConfig(JudgeConfig):
    """Detoxify (`toxicity`)."""

    variant: str = "original"
    """Which of its models."""
    checkpoint: str | None = None
    """File with its weights; None: they are downloaded."""
    folder: str | None = None
    """Folder of its base model; None: it is downloaded."""
    device: str = "cpu"
    """Where it runs."""

    def judge(self, rules: RulesJudge) -> Judge:
        from care.judges.toxicity import DetoxifyJudge

        return DetoxifyJudge.load(self, rules)


@dataclass(frozen=True)
class WordListConfig(JudgeConfig):
    """The word list that stands in for Detoxify (`toxicity`)."""

    def judge(self, rules: RulesJudge) -> Judge:
        from care.judges.toxicity import WordListJudge

        return WordListJudge(rules, self.name)
