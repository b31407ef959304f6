"""A vision-language model with its processor: batches, answers, likelihoods.

`VLM` is the only thing the rest of the package needs of a model. Batches are padded on the left
and hold a role for every position. Results do not depend on how examples are batched (beyond
rounding): order is kept, padding is masked and positions count real tokens only. Logits are
computed only where they are needed. Not here: edits and recordings of activations (`hooks`).
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.errors import DataError, ModelError, UsageError
from care.models.anatomy import Anatomy
from care.models.batches import Batch, encode, render
from care.models.context import context_limit
from care.models.decoding import PLAIN_POSITIONS, end_tokens, position_ids
from care.models.devices import device_of
from care.models.finite import check_logits
from care.models.loading import check_processor, first_tokens, load_pretrained, probe, tokenizer_of
from care.models.memory import in_halves, out_of_memory
from care.models.openers import REFUSAL_OPENERS, Uncounted
from care.models.prompt_cache import Prefill, Start, first_logits, read_prompts
from care.models.responses import Answer, Responder, Score, complete
from care.models.sites import Role
from care.models.thoughts import TAGS, decoded, tag_ids, warn_of_first_token
from care.models.weights import loading

Result = TypeVar("Result")


class VLM:
    """One vision-language model, ready to answer.

    Attributes: `model`, `processor`, `tokenizer`, `anatomy`, `name`, `revision`, `context`, the
    most tokens of prompt and answer together (None where the model states no limit), and two that
    may be set: `refusal_ids`, the token ids that count as the start of a refusal, and
    `thought_tags`, between which the model thinks before it answers (`care.models.thoughts`).
    """

    def __init__(
        self, model: Any, processor: Any, name: str = "", revision: str | None = None
    ) -> None:
        """Wrap a loaded model; ModelError unless model and processor agree on the image token."""
        self.anatomy = Anatomy.of(model)
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = tokenizer_of(processor)
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.revision = revision
        self.explicit_roles: Tensor | None = None
        self.answering = False
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise ModelError(f"{self.name}: the tokenizer has neither a padding nor an end token.")
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        check_processor(processor, self.anatomy.image_token_id, self.name)
        self.thought_tags = TAGS
        self._first_token_seen = False
        self.context = context_limit(model.config)
        self._eos()  # raises where it is nonsense
        prompt = render(processor, probe())
        self.refusal_ids = first_tokens(self.tokenizer, REFUSAL_OPENERS, prompt)
        self._uncounted = Uncounted(self.tokenizer, self.name, self.refusal_ids)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        dtype: Any = "auto",
        device_map: Any = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> "VLM":
        """Load a model and its processor from the Hub or a folder.

        Raises ModelError if there is no such model, it takes no images, it isn't whole or damaged,
        or the Hub is unreachable, MissingDependencyError if a package is missing that the model or
        `device_map` needs.
        """
        common = {"revision": revision, "trust_remote_code": trust_remote_code}
        options = {"device_map": device_map, "attn_implementation": attn_implementation}
        name = str(name_or_path)
        model, processor = load_pretrained(name, dtype, common, options)
        with loading(f"the model {name}"):
            vlm = cls(model, processor, name, revision)
            # Nonsense in a configuration shows when the model runs, and should before a long job.
            vlm.forward(vlm.batch(probe()), logits_to_keep=1)
        return vlm

    @classmethod
    def embedded(cls, dtype: Any = "auto") -> "VLM":
        """The small safety-aligned model that comes with the package (assembled on first use)."""
        from care.models.embedded.cache import load  # pyright: ignore[reportAttributeAccessIssue]

        model, processor = load(dtype)
        return cls(model, processor, "embedded")

    @property
    def device(self) -> torch.device:
        """Where inputs have to be: the device of the token embeddings."""
        return device_of(self.model.get_input_embeddings(), self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the token embeddings."""
        return self.model.get_input_embeddings().weight.dtype

    # -- batches ---------------------------------------------------------------------------------

    def batch(
        self, examples: Sequence[Example] | Example, responses: Sequence[str] | None = None
    ) -> Batch:
        """Inputs for B examples, left-padded; `responses` are appended as answer tokens.

        Examples with and without images may be mixed. A response is tokenized as it stands
        (begin it with a space if the template wants one). Raises DataError for an example that
        can't be encoded, UsageError if there are no examples or not one response for each.
        """
        examples = [examples] if isinstance(examples, Example) else list(examples)
        if not examples:
            raise UsageError("A batch needs at least one example; none were passed.")
        if isinstance(responses, str):
            responses = [responses]
        if responses is not None and len(responses) != len(examples):
            raise UsageError(
                f"{len(examples)} examples need as many responses, got {len(responses)}."
            )
        answers = [self._response_ids(text) for text in responses or [""] * len(examples)]
        inputs, roles = encode(self.processor, examples, answers, self.anatomy.image_token_id)
        self._check_length(examples, inputs["attention_mask"])
        inputs = {key: self._to_device(value) for key, value in inputs.items()}
        return Batch(inputs, roles.to(self.device))

    def forward(self, batch: Batch, *, logits_to_keep: int = 0, grad: bool = False) -> Tensor:
        """Logits (B, T, vocabulary), or (B, k, vocabulary) of the last k > 0 positions.

        No gradients unless `grad`. Hooks see `batch.roles`.
        """
        inputs = dict(batch.inputs)
        if self.model.config.model_type in PLAIN_POSITIONS:
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
        if self._keeps_logits:
            inputs["logits_to_keep"] = logits_to_keep
        with torch.set_grad_enabled(grad), self.known_roles(batch.roles):
            logits = self.model(**inputs, use_cache=False).logits
        return logits[:, -logits_to_keep:]

    @contextmanager
    def known_roles(self, roles: Tensor | None, *, answering: bool = False) -> Iterator[None]:
        """While open, hooks take these roles (B, T) instead of deriving them from the inputs.

        `answering` states that all of them are `Role.RESPONSE`, so that nobody has to look.
        """
        before = self.explicit_roles, self.answering
        self.explicit_roles, self.answering = roles, answering
        try:
            yield
        finally:
            self.explicit_roles, self.answering = before

    # -- answers ---------------------------------------------------------------------------------

    def generate(
        self,
        examples: Sequence[Example] | Example,
        *,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """One answer per example, in order; greedy unless `temperature` is positive.

        `stop` sees each answer so far every few tokens, without thoughts and not while the model
        thinks; where it says true the answer ends.
        `progress` gets the number of newly finished examples. A sampled answer depends on `seed`
        and its example only. A batch that doesn't fit into memory is halved. Raises NotFiniteError,
        which holds the other answers, where the model computes NaN or infinity.
        """
        found = self.answers(
            examples,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
            stop=stop,
            progress=progress,
        )
        return [answer.text for answer in found]

    def answers(
        self,
        examples: Sequence[Example] | Example,
        *,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """`generate`, with the lengths of prompts and answers."""
        examples = [examples] if isinstance(examples, Example) else list(examples)
        answer = Responder(self, examples, max_new_tokens, temperature, seed, stop)

        def work(chunk: list[int]) -> list[Answer | None]:
            return answer(chunk, self._start(examples, chunk))

        return complete(self, self.in_batches(examples, batch_size, work, progress))

    def prefill(self, examples: Sequence[Example] | Example, *, batch_size: int = 16) -> Prefill:
        """Read the prompts up to their last position, once for several calls of `generate_from`.

        Call it while nothing is edited. It holds the keys and values of N prompts on the device.
        Prompts that can't be read ahead (of a model not in `PLAIN_POSITIONS`, or more than the
        memory holds) are only encoded, and `generate_from` reads them.
        """
        examples = [examples] if isinstance(examples, Example) else list(examples)
        parts: list[tuple[list[int], Start]] = []

        def work(chunk: list[int]) -> list[int]:
            parts.append((chunk, self._start(examples, chunk)))
            return chunk

        self.in_batches(examples, batch_size, work)
        try:
            return Prefill(examples, [(chunk, read_prompts(self, start)) for chunk, start in parts])
        except Exception as error:
            if not out_of_memory(error):
                raise
            return Prefill(examples, parts)

    def generate_from(
        self,
        prefill: Prefill,
        *,
        max_new_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """`generate`, from prompts that have been read; `prefill` can be used again.

        Edits that are active now apply from the last position of each prompt on, so only those
        that edit nothing before it give the answers of `generate`. In the first pass hooks see
        that one position, as text; scope "decision" matches it.
        """
        answer = Responder(self, prefill.examples, max_new_tokens, temperature, seed, stop)
        answers: dict[int, Answer | None] = {}
        for indices, start in prefill.parts:
            found = self._in_part(prefill.examples, indices, start, answer, progress)
            answers.update(zip(indices, found, strict=True))
        found = complete(self, [answers[index] for index in range(len(prefill.examples))])
        return [answer.text for answer in found]

    def score(
        self, examples: Sequence[Example], responses: Sequence[str], batch_size: int = 16
    ) -> Score:
        """Teacher-forced log-likelihood of each response, over its own tokens only.

        Raises UsageError for an empty response or unequal numbers, NotFiniteError where the model
        computes NaN or infinity.
        """
        examples, responses = list(examples), list(responses)
        if len(examples) != len(responses):
            raise UsageError(
                f"{len(examples)} examples need as many responses, got {len(responses)}."
            )
        for example, response in zip(examples, responses, strict=True):
            if not self._response_ids(response):
                raise UsageError(f"Example {example.id!r}: an empty response has no likelihood.")

        def likelihood(chunk: list[int]) -> list[tuple[float, int, bool]]:
            batch = self.batch(
                [examples[index] for index in chunk], [responses[index] for index in chunk]
            )
            is_response = batch.roles == Role.RESPONSE
            longest = int(is_response.sum(dim=1).max())
            # The logits of a position predict the next one, so the last position is not needed.
            logits = self.forward(batch, logits_to_keep=longest + 1)[:, :-1]
            targets = batch.inputs["input_ids"][:, -longest:].to(logits.device)
            is_response = is_response[:, -longest:].to(logits.device)
            check_logits(logits, self.name, is_response, [examples[index].id for index in chunk])
            logits = logits.float()
            chosen = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
            totals = chosen.where(is_response, 0).sum(dim=1, dtype=torch.float64)
            greedy = ((logits.argmax(-1) == targets) | ~is_response).all(dim=1)
            counts = is_response.sum(dim=1)
            return list(zip(totals.tolist(), counts.tolist(), greedy.tolist(), strict=True))

        found = self.in_batches(examples, batch_size, likelihood, extra=responses)
        return Score(
            logprob=np.array([total for total, _, _ in found], dtype=np.float64),
            tokens=np.array([count for _, count, _ in found], dtype=np.int64),
            greedy=np.array([greedy for _, _, greedy in found], dtype=bool),
        )

    def refusal_log_odds(self, examples: Sequence[Example], batch_size: int = 16) -> np.ndarray:
        """log P(R) − log(1 − P(R)) at the first answer token, in nats (N,).

        R is `refusal_ids`. One forward pass per batch (Arditi et al. 2024, section 2.3). Raises
        NotFiniteError where the model computes NaN or infinity, as `score` does.
        """
        self._check_refusal_ids()
        examples = list(examples)

        def log_odds(chunk: list[int]) -> list[float]:
            asked = [examples[index] for index in chunk]
            logits = self.forward(self.batch(asked), logits_to_keep=1)[:, -1]
            return self._first_tokens(logits, asked).tolist()

        values = self.in_batches(examples, batch_size, log_odds)
        return np.array(values, dtype=np.float64)

    def refusal_log_odds_from(self, prefill: Prefill) -> np.ndarray:
        """`refusal_log_odds` of prompts that have been read; see `generate_from` for edits."""
        self._check_refusal_ids()
        values = np.zeros(len(prefill.examples))
        for indices, start in prefill.parts:
            asked = [prefill.examples[index] for index in indices]
            values[indices] = self._first_tokens(first_logits(self, start), asked).cpu().numpy()
        return values

    def log_odds(self, logits: Tensor) -> Tensor:
        """Refusal log-odds (B,) of logits (B, vocabulary); differentiable, and NaN of NaN.

        Warns, once, if the model begins its answers with a thought.
        """
        if not self._first_token_seen:
            self._first_token_seen = True
            warn_of_first_token(self, render(self.processor, Example("probe", "Hello")), logits)
        refusing = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        refusing[list(self.refusal_ids)] = True
        self._uncounted.look(logits, self.refusal_ids)
        logits = logits.float()
        return logits[..., refusing].logsumexp(-1) - logits[..., ~refusing].logsumexp(-1)

    def in_batches(
        self,
        examples: list[Example],
        batch_size: int,
        work: Callable[[list[int]], list[Result]],
        progress: Callable[[int], None] | None = None,
        extra: Sequence[str] | None = None,
    ) -> list[Result]:
        """`work` on batches of similar examples; results in the order of `examples`.

        `work` gets the indices of a batch and returns one result for each. A batch that doesn't fit
        into memory is halved. Examples with equally many images come together, longest first;
        `extra` is text that will follow each prompt. `progress` gets the number just finished.
        """
        order = self._by_length(examples, extra)
        found = in_halves(
            order, batch_size, work, kind=lambda i: len(examples[i].images), progress=progress
        )
        results = dict(zip(order, found, strict=True))
        return [results[index] for index in range(len(examples))]

    # -- inside ----------------------------------------------------------------------------------

    def _check_refusal_ids(self) -> None:
        if not self.refusal_ids:
            raise UsageError("refusal_ids is empty; set the first tokens of a refusal.")

    def _first_tokens(self, logits: Tensor, examples: Sequence[Example]) -> Tensor:
        """Refusal log-odds (B,) of the logits (B, vocabulary) of the first token of answers."""
        check_logits(logits, self.name, ids=[example.id for example in examples])
        return self.log_odds(logits)

    def _start(self, examples: list[Example], chunk: list[int]) -> Start:
        """Whole prompts of some examples, not read yet."""
        batch = self.batch([examples[index] for index in chunk])
        return Start(batch.inputs, batch.roles)

    def _in_part(
        self,
        examples: list[Example],
        indices: list[int],
        start: Start,
        answer: Responder,
        progress: Callable[[int], None] | None,
    ) -> list[Answer | None]:
        """Answers to one batch of a prefill; fewer rows at a time where memory doesn't suffice."""
        held = [examples[index] for index in indices]

        def work(chunk: list[int]) -> list[Answer | None]:
            part = start
            if chunk != list(range(len(start))):
                part = self._start(held, chunk) if start.cache is None else start.part(chunk)
            return answer([indices[row] for row in chunk], part)

        return self.in_batches(held, len(held), work, progress)

    def _response_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _check_length(self, examples: list[Example], attention_mask: Tensor) -> None:
        limit, lengths = self.context, attention_mask.sum(dim=1)
        if limit is not None and int(lengths.max()) > limit:
            worst = int(lengths.argmax())
            raise DataError(
                f"Example {examples[worst].id!r} has {int(lengths[worst])} tokens, more than the "
                f"{limit} that {self.name} can read; shorten it."
            )

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.device, self.dtype)
        return value.to(self.device)

    def _eos(self) -> frozenset[int]:
        return end_tokens(self.model, self.tokenizer)

    def _text(self, tokens: list[int]) -> str:
        return decoded(self.tokenizer, tokens, tag_ids(self.tokenizer, self.thought_tags)).strip()

    def _by_length(self, examples: list[Example], extra: Sequence[str] | None) -> list[int]:
        """Indices sorted by number of images, then text length, longest first.

        Longest first: a batch that doesn't fit into memory shows at once.
        """
        texts = [example.prompt + (example.system or "") for example in examples]
        if extra is not None:
            texts = [text + " " + more for text, more in zip(texts, extra, strict=True)]
        lengths = [len(self._response_ids(text)) for text in texts]
        return sorted(
            range(len(examples)),
            key=lambda index: (-len(examples[index].images), -lengths[index], index),
        )
