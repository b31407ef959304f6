"""What an image attack descends: the loss of wished-for answers as a function of one shared image.

    L(x) = mean over requests and their first k response tokens of −log p(y_t | x, prompt, y_<t)

All requests show the same image x, so it passes through the vision tower and the projector once,
what the requests begin with (the image among it) passes through the text model once and not once a
row (`rows`), and the head runs on the response positions only. It all goes through the model's own
modules, so edits by `care.models.hooks` that are active take part. Where an edit might tell the
beginning of a prompt from a whole one, every row is read whole.

For models in the manner of LLaVA 1.5 and Qwen2-VL; how the image and its tokens enter is compared
with the model's own path, and refused if it differs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from care.attacks.prefix_batch import PassInputs, TokenRows
from care.attacks.preprocessing import PixelPath
from care.data.example import Example
from care.errors import ModelError, UsageError
from care.models.batches import Batch
from care.models.caches import cache_argument
from care.models.finite import check_logits
from care.models.sites import Role
from care.models.vlm import VLM

Penalty = Callable[[], Tensor | None]
"""What is added to the loss of the passes since the last call, if anything; differentiable."""


Term = Callable[[Sequence[int], Tensor, Tensor], Tensor | None]
"""What is added to the loss of the requests at these places, beside an image (3, H, W) in [0, 1]
with its visual tokens (V, D)."""


class Objective:
    """Loss of the first response tokens of N requests, as a function of one shared image."""

    def __init__(
        self,
        vlm: VLM,
        path: PixelPath,
        examples: Sequence[Example],
        targets: Sequence[str],
        target_tokens: int | None,
    ) -> None:
        """Encode the examples, each with the start image, followed by its target's tokens.

        `target_tokens` None takes whole targets.
        """
        self.vlm, self.path = vlm, path
        answers = [
            vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:target_tokens]
            for text in targets
        ]
        for example, answer in zip(examples, answers, strict=True):
            if not answer:
                raise UsageError(f"Example {example.id!r}: its target has no tokens; write one.")
        (start,) = examples[0].load_images()
        self.grid = _grid_of(path, start)
        self.rows = TokenRows(vlm, examples, answers, self.grid)
        self.shares = self.rows.shared > 0
        """Whether the beginning of the requests is read once; `verify` may find it can't be."""
        self.decision_only = False
        """Whether active edits are known to change nothing before the last prompt position."""
        self.penalty: Penalty | None = None
        """Added to the loss of `gradient`."""
        self.term: Term | None = None
        """Likewise, of the requests that were read and the image."""

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens (V, D) of one image, by tower and projector."""
        values = pixel_values.to(self.vlm.device, self.vlm.dtype)
        more = {} if self.grid is None else {"image_grid_thw": self.grid.to(self.vlm.device)}
        try:
            output = self.vlm.model.get_image_features(pixel_values=values, **more)
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.vlm.name} can't turn pixel values alone into visual tokens ({error}); this "
                "attack is for models in the manner of LLaVA 1.5 or Qwen2-VL."
            ) from error
        tokens = getattr(output, "pooler_output", output)
        tokens = torch.cat(list(tokens), dim=0) if isinstance(tokens, (list, tuple)) else tokens
        return tokens.reshape(-1, tokens.shape[-1])

    def batch(self, rows: Sequence[int], features: Tensor) -> Batch:
        """Embedded inputs of the requests `rows`, their image tokens replaced by `features`."""
        return self._embedded(self.rows.whole(rows), features)

    def total(self, rows: Sequence[int], features: Tensor, *, grad: bool) -> tuple[Tensor, int]:
        """Summed −log p (nats) of the response tokens of the requests `rows`, and their number."""
        wanted, counts = self.rows.answers(rows)
        # The last position predicts what comes after; only those before it count.
        kept = wanted.shape[1] + 1
        known = self.decision_only or not self.vlm.model._forward_pre_hooks
        if len(rows) > 1 and self.shares and known:
            logits = self._continued(rows, features, kept, grad)
        else:
            logits = self.vlm.forward(self.batch(rows, features), logits_to_keep=kept, grad=grad)
        logits = logits[:, :-1]
        wanted, counts = wanted.to(logits.device), counts.to(logits.device)
        check_logits(logits, self.vlm.name, counts.bool())
        logits = logits.float()
        chosen = logits.gather(-1, wanted[..., None]).squeeze(-1) - logits.logsumexp(-1)
        return -(chosen * counts).sum(), int(counts.sum())

    def gradient(
        self, pixels: Tensor, rows: Sequence[int], batch: int | None = None
    ) -> tuple[float, Tensor]:
        """Loss (nats per token) of the requests `rows` and its gradient (3, H, W).

        At most `batch` requests are read at once; `penalty` is part of both.
        """
        rows = list(rows)
        batch = batch or len(rows)
        pixels = pixels.detach().requires_grad_()
        loss, tokens = 0.0, 0
        gradient = torch.zeros_like(pixels)
        for begin in range(0, len(rows), batch):
            with torch.enable_grad():
                features = self.features(self.path(pixels))
                part = rows[begin : begin + batch]
                total, count = self.total(part, features, grad=True)
                extra = self.penalty() if self.penalty is not None else None
                total = total if extra is None else total + count * extra
                more = self.term(part, pixels, features) if self.term is not None else None
                total = total if more is None else total + count * more
                if total.requires_grad:  # else an edit cut the graph; nothing reaches the image
                    gradient += torch.autograd.grad(total, pixels)[0]
            loss, tokens = loss + float(total.detach()), tokens + count
        return loss / tokens, gradient / tokens

    @torch.no_grad()
    def loss(self, pixel_values: Tensor, rows: Sequence[int], batch: int) -> float:
        """Loss (nats per token) of an image's `pixel_values` over the requests `rows`."""
        features = self.features(pixel_values)
        chunks = [rows[begin : begin + batch] for begin in range(0, len(rows), batch)]
        parts = [self.total(chunk, features, grad=False) for chunk in chunks]
        return sum(float(total) for total, _ in parts) / sum(count for _, count in parts)

    def added(self, pixels: Tensor, rows: Sequence[int], batch: int) -> float:
        """What `term` adds to the loss of a finished image (3, H, W), as `gradient` weighs it."""
        if self.term is None:
            return 0.0
        added, tokens = 0.0, 0
        with torch.no_grad():
            features = self.features(self.path(pixels))
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            count = int(self.rows.counts[list(part)].sum())
            more = self.term(part, pixels, features)
            added += 0.0 if more is None else count * float(more.detach())
            tokens += count
        return added / tokens

    @torch.no_grad()
    def verify(self, example: Example, levels: Tensor) -> None:
        """ModelError unless the first answer logits are finite and those of the model's own path.

        Where reading the beginning once gives another loss, it is no longer done.
        """
        own = self.vlm.forward(self.vlm.batch(example), logits_to_keep=1)[0, -1]
        check_logits(own[None], self.vlm.name)
        own = own.float()
        features = self.features(self.path(levels / 255))
        batch = self.batch([0], features)
        first = int(self.rows.counts[0]) + 1
        ours = self.vlm.forward(batch, logits_to_keep=first)[0, 0].float()
        precise = self.vlm.dtype == torch.float32
        distance = float((own - ours).norm() / (own - own.mean()).norm().clamp_min(1e-6))
        if not distance <= (0.02 if precise else 0.2):
            raise ModelError(
                f"{self.vlm.name} treats images in a way that can't be reproduced from its visual "
                f"tokens alone (logits differ by {distance:.2f} of their spread); this attack is "
                "for models in the manner of LLaVA 1.5 or Qwen2-VL."
            )
        if self.shares and len(self) > 1 and not self.vlm.model._forward_pre_hooks:
            self.shares = self._agrees(features, 1e-3 if precise else 0.1)

    def _agrees(self, features: Tensor, tolerance: float) -> bool:
        """Whether both ways of reading the first two requests give the same loss per token."""
        losses = []
        for self.shares in (False, True):
            total, count = self.total([0, 1], features, grad=False)
            losses.append(float(total) / count)
        return abs(losses[0] - losses[1]) <= tolerance

    def _continued(self, rows: Sequence[int], features: Tensor, kept: int, grad: bool) -> Tensor:
        """Logits (B, kept, vocabulary), the shared beginning read once."""
        beginning = self._embedded(self.rows.beginning(), features)
        if self.decision_only:
            # Its last position isn't that of a prompt, which edits couldn't know; padding is left
            # alone by all of them.
            roles = torch.full_like(beginning.roles, int(Role.PAD))
            beginning = Batch(beginning.inputs, roles)
        cache = DynamicCache(config=self.vlm.model.config.get_text_config())
        nothing = torch.zeros(0, dtype=torch.long, device=self.vlm.device)
        self._run(beginning, cache, nothing, grad)  # 0 would compute the logits of all
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.keys = layer.keys.expand(len(rows), *layer.keys.shape[1:])
            layer.values = layer.values.expand(len(rows), *layer.values.shape[1:])
        rest = self._embedded(self.rows.rest(rows), features)
        return self._run(rest, cache, kept, grad)[:, -kept:]

    def _run(self, batch: Batch, cache: DynamicCache, kept: int | Tensor, grad: bool) -> Tensor:
        with torch.set_grad_enabled(grad), self.vlm.known_roles(batch.roles):
            held = {cache_argument(self.vlm.model): cache}
            output = self.vlm.model(**batch.inputs, **held, use_cache=True, logits_to_keep=kept)
        return output.logits

    def _embedded(self, part: PassInputs, features: Tensor) -> Batch:
        device = self.vlm.device
        roles = part.roles.to(device)
        inputs: dict[str, Any] = {key: value.to(device) for key, value in part.inputs.items()}
        embedded = self.vlm.model.get_input_embeddings()(inputs.pop("input_ids"))
        is_image = roles == Role.IMAGE
        if bool(is_image.any()):
            if int(is_image[0].sum()) != len(features):
                raise ModelError(
                    f"{self.vlm.name} makes {len(features)} visual tokens but its prompts hold "
                    f"{int(is_image[0].sum())} image tokens."
                )
            visual = features.to(embedded).expand(len(roles), *features.shape)
            embedded = embedded.masked_scatter(is_image[..., None], visual)
        return Batch({**inputs, "inputs_embeds": embedded}, roles)


def _grid_of(path: PixelPath, start: Any) -> Tensor | None:
    """`image_grid_thw` of the start image, which every later image shares."""
    if path.patches is None:
        return None
    return torch.as_tensor(path.processor(images=[start], return_tensors="pt")["image_grid_thw"])
