"""What a model said, and how likely it is to say something."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """Log-likelihood of one response per example."""

    logprob: np.ndarray
    """Total log-likelihood in nats (N,)."""

    tokens: np.ndarray
    """Number of response tokens (N,)."""

    greedy: np.ndarray
    """Whether every token is the likeliest at its place (N,)."""

    @property
    def mean(self) -> np.ndarray:
        """Log-likelihood per token (N,)."""
        return self.logprob / self.tokens


@dataclass(frozen=True)
class Answer:
    """One answer, and how long it and its prompt are."""

    text: str
    """The answer."""

    prompt_tokens: int
    """Tokens of the prompt, those of its images included."""

    tokens: int
    """Tokens of the answer, without the one that ended it."""

    ended: bool
    """Whether the model or `stop` ended it; otherwise it was cut at `max_new_tokens`."""
