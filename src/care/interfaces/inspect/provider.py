"""A model of this package as a model of Inspect: care/HUB-NAME, care/FOLDER, care/embedded.

    inspect eval … --model care/llava-hf/llava-1.5-7b-hf -M repair=FOLDER -M dtype=bfloat16

Answers are those of `VLM.generate`: greedy unless a temperature is asked for. Requests that are
made at the same time are answered in one batch. A setting that can't be honoured (top_p, logprobs,
tools, …) is an error and never dropped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)

from care.data.conversation import Conversation
from care.defenses.base import answers_under
from care.defenses.loading import load_defense
from care.errors import UsageError
from care.interfaces.inspect.shared import one_sentence
from care.interfaces.requests.batching import Batches
from care.interfaces.requests.chat import conversation
from care.interfaces.requests.decoding import Decoding, check_settings
from care.models.spec import EMBEDDED, LOADING, ModelSpec
from care.models.thoughts import read
from care.models.vlm import Answer

_ARGUMENTS = ("repair", *LOADING, "batch_size")

_INSPECTS_OWN = frozenset(
    {
        "max_retries",
        "timeout",
        "attempt_timeout",
        "max_connections",
        "adaptive_connections",
        "system_message",
        "cache",
        "max_tool_output",
        "fail_on_refusal",
    }
)
"""Settings that Inspect sees to itself, around the call of a model."""

_HONOURED = frozenset({"max_tokens", "temperature", "seed", "stop_seqs"})

_NEUTRAL = {"num_choices": 1, "best_of": 1, "top_p": 1}
"""Values that ask for nothing; so does anything false, such as a penalty of 0."""


@dataclass(frozen=True)
class ProviderConfig:
    """Which model, and how; what `-M` may say."""

    model: ModelSpec
    """The model."""
    repair: str | None = None
    """Folder of a repair (or its name on the Hub) that is applied to every answer, or another
    defense as `care.defenses.load_defense` takes it."""
    batch_size: int = 16
    """Most requests that are answered together."""

    def __post_init__(self) -> None:
        model = self.model
        if model.name == "":
            raise UsageError("care/ needs the name of a model, such as care/embedded.")
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size!r}.")
        if not isinstance(model.trust_remote_code, bool):
            raise UsageError(
                f"trust_remote_code is true or false, got {model.trust_remote_code!r}."
            )

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> ProviderConfig:
        """From the model's name and the arguments of `-M`; UsageError for one that is unknown."""
        if unknown := sorted(given.keys() - set(_ARGUMENTS)):
            raise UsageError(
                f"A care model has no argument {unknown[0]!r}; it takes {', '.join(_ARGUMENTS)}."
            )
        given = {key: value for key, value in given.items() if value is not None}
        for key in ("repair", "dtype", "revision"):
            if key in given:
                given[key] = str(given[key])  # a revision of digits was read as a number
        loading = {key: given.pop(key) for key in LOADING if key in given}
        return cls(ModelSpec(None if name == EMBEDDED else name, **loading), **given)


def read_settings(config: GenerateConfig, longest: int) -> Decoding:
    """How an answer is made, from Inspect's settings; UsageError for one that can't be honoured.

    Where no length is asked for, it is `longest`.
    """
    given = config.model_dump(exclude_none=True)
    check_settings(
        given,
        _INSPECTS_OWN | _HONOURED,
        lambda name, value: not value or _NEUTRAL.get(name) == value,
        lambda name, value: (
            f"A care model can't honour {name}={value!r:.60}; leave it out. It takes "
            f"{', '.join(sorted(_HONOURED))}."
        ),
    )
    stops = tuple(given.get("stop_seqs") or ())
    if "" in stops:
        raise UsageError("An empty stop sequence would end every answer; leave it out.")
    return Decoding(
        max_new_tokens=given.get("max_tokens") or longest,
        temperature=float(given.get("temperature", 0.0)),
        until=stops,
        seed=given.get("seed", 0),
    )


class CareAPI(ModelAPI):
    """Answers Inspect's requests with one VLM, bare or under one repair."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        config = config or GenerateConfig()
        super().__init__(model_name, base_url, api_key, config=config)
        with one_sentence():
            read_settings(config, longest=1)  # before a model is loaded for nothing
            if base_url is not None or api_key is not None:
                raise UsageError("A care model runs here: it takes no base_url and no api_key.")
            self.options = ProviderConfig.of(model_name, model_args)
            self.vlm = self.options.model.load()
            wanted = self.options.repair
            self.repair = None if wanted is None else load_defense(wanted, self.vlm)
        self._batches = Batches(self.options.batch_size, self._answer)
        self._asked: Counter[str] = Counter()

    async def generate(
        self, input: list[Any], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to one conversation.

        Raises UsageError for tools, contents and settings that the model can't honour, DataError
        for an image that can't be used or a request that is too long.
        """
        if tools:
            names = ", ".join(tool.name for tool in tools)
            raise UsageError(
                f"Care models call no tools, but the task offers {names}; use a solver without."
            )
        settings = read_settings(config, self.max_tokens())
        request = conversation(input)
        # Drawn answers depend on the example: the same words again are to be drawn anew.
        words = request.text_alone().id
        self._asked[words] += 1
        request = replace(request, turn=self._asked[words])
        started = time.monotonic()
        answer = await self._batches.ask(settings, request)
        return self._output(answer, settings, time.monotonic() - started, request.opening)

    def max_tokens(self) -> int:
        """Length of an answer unless one is asked for; as in `care evaluate`."""
        return self.options.model.answer_length(None)

    def max_connections(self) -> int:
        """As many requests at once as a batch holds."""
        return self.options.batch_size

    def connection_key(self) -> str:
        """The bare and the repaired model don't wait for each other."""
        return f"{self.model_name} {self.options.repair}"

    def collapse_user_messages(self) -> bool:
        """Chat templates want users and assistants to take turns."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """See `collapse_user_messages`."""
        return True

    def _answer(self, settings: Decoding, requests: list[Conversation]) -> list[Answer]:
        return answers_under(
            self.repair,
            self.vlm,
            requests,
            max_new_tokens=settings.max_new_tokens,
            batch_size=self.options.batch_size,
            temperature=settings.temperature,
            seed=settings.seed,
            stop=settings.stop,
        )

    def _output(
        self, answer: Answer, settings: Decoding, seconds: float, opening: str = ""
    ) -> ModelOutput:
        said = read(answer.text, self.vlm.thought_tags)
        # Thoughts without an end stay as they are: a scorer must see that there is no answer.
        whole = answer.text if said.answer is None else said.answer
        # Nor is a refusal cut that was put in the answer's place.
        uncut = said.answer is None or answer.source == "refusal"
        begun = opening if answer.source == "model" else ""
        text = whole if uncut else settings.cut(whole, begun, self.vlm.thought_tags)
        reason = "model_length" if answer.context_full else "max_tokens"
        reason = "stop" if answer.ended or text != whole else reason
        content: Any = text
        if said.answer is not None and said.thoughts is not None:
            content = [ContentReasoning(reasoning=said.thoughts), ContentText(text=text)]
        message = ChatMessageAssistant(content=content, model=self.model_name, source="generate")
        usage = ModelUsage(
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.tokens,
            total_tokens=answer.prompt_tokens + answer.tokens,
        )
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=reason)],
            usage=usage,
            time=seconds,
            metadata=_decided(answer),
        )


def _decided(answer: Answer) -> dict[str, Any] | None:
    """What monitors raised, and what followed; None where no monitor decided anything."""
    if not answer.alarms:
        return None
    return {"source": answer.source, "alarms": [asdict(alarm) for alarm in answer.alarms]}
