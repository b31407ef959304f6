"""A vision-language model with its processor: batches, answers, likelihoods.

`VLM` is the only thing the rest of the package needs of a model. Batches are padded on the left
and hold a role for every position. Results do not depend on how examples are batched (beyond
rounding): order is kept, padding is masked and positions count real tokens only. Logits are
computed only where they are needed. Not here: edits and recordings of activations (`hooks`).
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.errors import ModelError, UsageError
from care.models import batches
from care.models.anatomy import Anatomy
from care.models.batches import (
    Batch,
    by_length,
    check_lengths,
    encode,
    placed,
    prompt_lengths,
    render,
)
from care.models.codebooks import check_inputs
from care.models.context import context_limit
from care.models.decoding import end_tokens
from care.models.devices import device_of
from care.models.edit_stats import EditStats
from care.models.finite import check_logits
from care.models.loading import (
    first_tokens,
    load_pretrained,
    picture_tokens,
    probe,
    quantization,
    tokenizer_of,
)
from care.models.memory import in_halves, out_of_memory
from care.models.openers import REFUSAL_OPENERS, Uncounted, log_odds
from care.models.prompt_cache import (
    PromptCache,
    Start,
    first_logits,
    plain_positions,
    position_ids,
    read_prompts,
)
from care.models.responses import Answer, Responder, Score, complete, likelihoods
from care.models.sites import RoleContext
from care.models.starts import Prompts, listed, over_starts
from care.models.text_only import text_processor
from care.models.thoughts import TAGS, warn_of_first_token
from care.models.weights import loading

Result = TypeVar("Result")


class VLM:
    """One vision-language model, ready to answer.

    Attributes: `model`, `processor`, `tokenizer`, `anatomy`, `name`, `revision`, `roles`, those
    that hooks are told, `context`, the most tokens of prompt and answer together (None where the
    model states no limit), and three that may be set: `refusal_ids`, the token ids that count as
    the start of a refusal, `thought_tags`, between which the model thinks before it answers
    (`care.models.thoughts`), and `edit_counts`, a list to which every edit adds its statistics
    while somebody wants them (`care.models.hooks.counted`).
    """

    edit_counts: list[EditStats] | None = None

    def __init__(
        self, model: Any, processor: Any, name: str = "", revision: str | None = None
    ) -> None:
        """Wrap a loaded model; ModelError unless model and processor agree on the image token."""
        self.anatomy = Anatomy.of(model)
        self.model = model.eval()
        self.processor = processor = processor if self.sees else text_processor(processor)
        self.tokenizer = tokenizer_of(processor)
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.revision, self.roles = revision, RoleContext()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise ModelError(f"{self.name}: the tokenizer has neither a padding nor an end token.")
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._picture_tokens = picture_tokens(processor, self.anatomy.image_token_id, self.name)
        self.thought_tags = TAGS
        self._first_token_seen = False
        self.context = context_limit(model.config)
        end_tokens(model, self.tokenizer)  # raises where they are nonsense
        prompt = render(processor, probe(self.sees))
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
        quantize: str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> "VLM":
        """Load a model and its processor from the Hub or a folder.

        `quantize`, "8-bit" or "4-bit", has bitsandbytes hold the weights of linear layers so.
        Raises ModelError if there is no such model, it has no sites, it isn't whole or damaged, or
        the Hub is unreachable, MissingDependencyError if a package is missing that the model or
        `device_map` needs.
        """
        common = {"revision": revision, "trust_remote_code": trust_remote_code}
        options = {
            "device_map": device_map,
            "attn_implementation": attn_implementation,
            "quantization_config": quantization(quantize),
        }
        name = str(name_or_path)
        model, processor = load_pretrained(name, dtype, common, options)
        with loading(f"the model {name}"):
            vlm = cls(model, processor, name, revision)
            # Nonsense in a configuration shows when the model runs, and should before a long job.
            vlm.forward(vlm.batch(probe(vlm.sees)), logits_to_keep=1)
        return vlm

    @classmethod
    def embedded(cls, dtype: Any = "auto") -> "VLM":
        """The small safety-aligned model that comes with the package (assembled on first use)."""
        from care.models.embedded.cache import load  # pyright: ignore[reportAttributeAccessIssue]

        model, processor = load(dtype)
        return cls(model, processor, "embedded")

    @property
    def sees(self) -> bool:
        """Whether requests may hold pictures; not those of a model that reads text alone."""
        return self.anatomy.image_token_id is not None

    @property
    def device(self) -> torch.device:
        """Where inputs have to be: the device of the token embeddings."""
        return device_of(self.model.get_input_embeddings(), self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the token embeddings."""
        return self.model.get_input_embeddings().weight.dtype

    # -- batches ---------------------------------------------------------------------------------

    def batch(
        self, examples: Sequence[Example] | Example, responses: Sequence[str] | None = None
    ) -> Batch:
        """Inputs for B examples, left-padded; openings and `responses` are appended as answers.

        Examples with and without images may be mixed. A response is tokenized as it stands
        (begin it with a space if the template wants one). Raises DataError for an example that
        can't be encoded, UsageError if there are no examples or not one response for each.
        """
        examples = listed(examples)
        if not examples:
            raise UsageError("A batch needs at least one example; none were passed.")
        responses = [responses] if isinstance(responses, str) else responses
        if responses is not None and len(responses) != len(examples):
            raise UsageError(
                f"{len(examples)} examples need as many responses, got {len(responses)}."
            )
        answers = [self.response_ids(text) for text in responses or [""] * len(examples)]
        inputs, roles = encode(self.processor, examples, answers, self.anatomy.image_token_id)
        check_lengths(examples, inputs["attention_mask"], self.context, self.name)
        inputs = {key: placed(value, self.device, self.dtype) for key, value in inputs.items()}
        return Batch(inputs, roles.to(self.device))

    def response_ids(self, text: str) -> list[int]:
        """Tokens of a response as it stands; none of an empty one."""
        return batches.answer_ids(self.tokenizer, text)

    def forward(self, batch: Batch, *, logits_to_keep: int = 0, grad: bool = False) -> Tensor:
        """Logits (B, T, vocabulary), or (B, k, vocabulary) of the last k > 0 positions.

        No gradients unless `grad`; ModelError where they can't reach pixels. Hooks see the roles.
        """
        inputs = dict(batch.inputs)
        if grad:
            check_inputs(self.model, self.name, inputs)
        if plain_positions(self.model):
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
        if self._keeps_logits:
            inputs["logits_to_keep"] = logits_to_keep
        with torch.set_grad_enabled(grad), self.known_roles(batch.roles):
            logits = self.model(**inputs, use_cache=False).logits
        return logits[:, -logits_to_keep:]

    def known_roles(
        self, roles: Tensor | None, *, answering: bool = False
    ) -> AbstractContextManager[None]:
        """See `RoleContext.known`."""
        return self.roles.known(roles, answering=answering)

    # -- answers ---------------------------------------------------------------------------------

    def generate(
        self,
        examples: Prompts,
        *,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """One answer per example, in order; greedy unless `temperature` is positive.

        Prompts that have been read keep the batches that they were read in, and can be used again;
        `PromptCache` says what edits do to them. `stop` sees each answer so far every few tokens,
        without thoughts and not while the model thinks; where it says true the answer ends
        (`StopTexts` don't look at its opening). `progress` gets the number of newly finished
        examples. A sampled answer depends on `seed` and its example only. Long prompts come fewer
        at once, and a batch for which memory doesn't suffice is halved. Raises NotFiniteError,
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
        examples: Prompts,
        *,
        max_new_tokens: int = 48,
        batch_size: int | None = 16,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
        heard: Callable[[str, int], None] | None = None,
    ) -> list[Answer]:
        """`generate`, with the lengths of prompts and answers.

        `heard` is told an answer so far and its tokens, after each of them: for one example. A
        `batch_size` of None is for one batch that mustn't be divided (`in_batches`).
        """
        answer = Responder(
            model=self.model,
            processor=self.processor,
            roles=self.roles,
            name=self.name,
            context=self.context,
            tags=self.thought_tags,
            examples=listed(examples),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            heard=heard,
        )
        found = over_starts(self, examples, batch_size, answer, progress)
        return complete(found, self.name, self.dtype, self.context)

    def prefill(
        self, examples: Sequence[Example] | Example, *, batch_size: int = 16
    ) -> PromptCache:
        """Read the prompts up to their last position, once for several calls of `generate`.

        Call it while nothing is edited. It holds the keys and values of N prompts on the device.
        Prompts that can't be read ahead (of a model whose positions aren't plain, or more than the
        memory holds) are only encoded, and `generate` reads them.
        """
        examples = listed(examples)
        parts: list[tuple[list[int], Start]] = []

        def work(chunk: list[int]) -> list[int]:
            parts.append((chunk, Start.of(self.batch([examples[index] for index in chunk]))))
            return chunk

        self.in_batches(examples, batch_size, work)
        try:
            read = [(chunk, read_prompts(self.model, self.roles, start)) for chunk, start in parts]
            return PromptCache(examples, read)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return PromptCache(examples, parts)

    def score(
        self, examples: Sequence[Example], responses: Sequence[str], batch_size: int = 16
    ) -> Score:
        """Teacher-forced log-likelihood of each response after prompt and opening.

        Raises UsageError for an empty response or unequal numbers, and NotFiniteError.
        """
        examples, responses = list(examples), list(responses)
        if len(examples) != len(responses):
            raise UsageError(
                f"{len(examples)} examples need as many responses, got {len(responses)}."
            )
        for example, response in zip(examples, responses, strict=True):
            if not self.response_ids(response):
                raise UsageError(f"Example {example.id!r}: an empty response has no likelihood.")

        def likelihood(chunk: list[int]) -> list[tuple[float, int, bool]]:
            batch = self.batch(
                [examples[index] for index in chunk], [responses[index] for index in chunk]
            )
            counts = torch.tensor([len(self.response_ids(responses[index])) for index in chunk])
            longest = int(counts.max())
            # The logits of a position predict the next one, so the last position is not needed.
            logits = self.forward(batch, logits_to_keep=longest + 1)[:, :-1]
            targets = batch.inputs["input_ids"][:, -longest:].to(logits.device)
            is_response = (torch.arange(longest) >= longest - counts[:, None]).to(logits.device)
            check_logits(logits, self.name, is_response, [examples[index].id for index in chunk])
            return likelihoods(logits, targets, is_response)

        return Score.of(self.in_batches(examples, batch_size, likelihood, extra=responses))

    def refusal_log_odds(self, examples: Prompts, batch_size: int = 16) -> np.ndarray:
        """log P(R) − log(1 − P(R)) at the first answer token after an opening, in nats (N,).

        R is `refusal_ids`. One forward pass per batch (Arditi et al. 2024, section 2.3); prompts
        that have been read keep their batches, and `PromptCache` says what edits do to them. Raises
        NotFiniteError where the model computes NaN or infinity, as `score` does.
        """
        asked, read = listed(examples), isinstance(examples, PromptCache)

        def odds(chunk: list[int], start: Start) -> list[float]:
            if read:
                logits = first_logits(self.model, self.roles, start)
            else:
                batch = Batch(start.inputs, start.roles)
                logits = self.forward(batch, logits_to_keep=1)[:, -1]
            check_logits(logits, self.name, ids=[asked[index].id for index in chunk])
            return self.log_odds(logits).tolist()

        return np.array(over_starts(self, examples, batch_size, odds), dtype=np.float64)

    def log_odds(self, logits: Tensor) -> Tensor:
        """Refusal log-odds (B,) of logits (B, vocabulary); differentiable, and NaN of NaN.

        Warns, once, if the model begins its answers with a thought. UsageError without refusals.
        """
        if not self.refusal_ids:
            raise UsageError("refusal_ids is empty; set the first tokens of a refusal.")
        if not self._first_token_seen:
            self._first_token_seen = True
            prompt = render(self.processor, Example("probe", "Hello"))
            warn_of_first_token(self.tokenizer, self.name, self.thought_tags, prompt, logits)
        self._uncounted.look(logits, self.refusal_ids)
        return log_odds(logits, self.refusal_ids)

    def lengths(self, examples: list[Example], extra: Sequence[str] | None = None) -> list[int]:
        """About how many tokens examples have, each with its `extra`; without the template's."""
        return prompt_lengths(self.tokenizer, examples, self._picture_tokens, extra)

    def in_batches(
        self,
        examples: list[Example],
        batch_size: int | None,
        work: Callable[[list[int]], Sequence[Result]],
        progress: Callable[[int], None] | None = None,
        extra: Sequence[str] | None = None,
    ) -> list[Result]:
        """`work` on batches of similar examples; results in the order of `examples`.

        `work` gets the indices of a batch and returns one result for each. Long examples come fewer
        at once (`care.models.memory`), and a batch that doesn't fit into memory is halved; with a
        `batch_size` of None all are one batch, and both are the caller's. Examples with equally
        many images come together, longest first; `extra` is text that will follow each prompt.
        `progress` gets the number just finished.
        """
        if batch_size is None:
            return list(work(list(range(len(examples)))))
        lengths = self.lengths(examples, extra)
        order = by_length(examples, lengths)
        found = in_halves(
            order,
            batch_size,
            work,
            kind=lambda i: len(examples[i].images),
            length=lambda i: lengths[i],
            progress=progress,
        )
        results = dict(zip(order, found, strict=True))
        return [results[index] for index in range(len(examples))]
