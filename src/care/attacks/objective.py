"""What an image attack descends: the loss of wished-for answers as a function of one shared image.

    L(x) = mean over requests and their first k response tokens of −log p(y_t | x, prompt, y_<t)

All requests show the same image x, so it passes through the vision tower and the projector once
and its visual tokens are copied into every row; the head runs on the response positions only. It
all goes through the model's own modules, so edits by `care.hooks` that are active take part.

For models whose processor resizes to one fixed size and normalises (LLaVA 1.5 and its like); how
the image and its tokens enter is compared with the model's own path, and refused if it differs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from care.anatomy import Role
from care.batches import Batch, encode
from care.errors import ModelError, UsageError
from care.examples import Example, load_image
from care.vlm import VLM

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class PixelPath:
    """A processor's way from RGB in [0, 1] to `pixel_values`, as a differentiable function."""

    processor: Any
    """The image processor."""

    mean: Tensor
    """Channel means (3, 1, 1), in [0, 1] units."""

    std: Tensor
    """Channel deviations (3, 1, 1)."""

    scale: float
    """Factor from [0, 1] to what is normalised; 1 for the usual rescaling by 1/255."""

    @classmethod
    def of(cls, vlm: VLM, start: Image.Image) -> tuple["PixelPath", Tensor]:
        """The path, and `start` at the model's input size as 8-bit levels (3, H, W) in float32.

        Raises ModelError unless one image becomes one normalised image, and an 8-bit image of
        that size becomes the same `pixel_values` either way.
        """
        name = type(getattr(vlm.processor, "image_processor", None) or vlm.processor).__name__
        try:
            path = cls._configured(vlm.processor.image_processor)
        except (AttributeError, TypeError, ValueError) as error:
            raise _not_differentiable(
                name, f"it has no plain mean and deviation ({error})"
            ) from error
        values = path.process(load_image(start, "start image"))
        if values.ndim != 4 or values.shape[:2] != (1, 3):
            raise _not_differentiable(name, f"one image becomes {tuple(values.shape)}")
        pixels = (values[0] * path.std + path.mean) / path.scale
        levels = (pixels * 255).round().clamp(0, 255)
        again = path.process(to_picture(levels))
        # Half of the distance between two 8-bit levels.
        tolerance = 0.5 / 255 * path.scale / float(path.std.max())
        if again.shape != values.shape or not torch.allclose(
            path(levels / 255), again, rtol=0, atol=tolerance
        ):
            raise _not_differentiable(name, "it does more than resize once and normalise")
        return path, levels

    @classmethod
    def _configured(cls, processor: Any) -> "PixelPath":
        normalises = getattr(processor, "do_normalize", True)
        mean, std = (
            torch.tensor(value, dtype=torch.float32).expand(3).reshape(3, 1, 1)
            for value in ((processor.image_mean, processor.image_std) if normalises else (0.0, 1.0))
        )
        factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        return cls(processor, mean, std, 255.0 * float(factor))

    def __call__(self, pixels: Tensor) -> Tensor:
        """`pixel_values` (1, 3, H, W) of RGB (3, H, W) in [0, 1]."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return ((pixels * self.scale - mean) / std)[None]

    def process(self, image: Image.Image) -> Tensor:
        """`pixel_values` from the processor itself, in float32."""
        values = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        return torch.as_tensor(values).float()


class Objective:
    """Loss of the first response tokens of N requests, as a function of one shared image."""

    def __init__(
        self,
        vlm: VLM,
        path: PixelPath,
        examples: Sequence[Example],
        targets: Sequence[str],
        target_tokens: int,
    ) -> None:
        """Encode the examples, each with the start image, followed by its target's tokens."""
        self.vlm, self.path = vlm, path
        answers = [
            vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:target_tokens]
            for text in targets
        ]
        for example, answer in zip(examples, answers, strict=True):
            if not answer:
                raise UsageError(f"Example {example.id!r}: its target has no tokens; write one.")
        self._rows, self._roles = _encode_all(vlm, examples, answers)
        counts = (self._roles == Role.IMAGE).sum(dim=1)
        if not bool((counts == counts[0]).all()):
            raise ModelError("The requests hold unequal numbers of image tokens for one image.")

    def __len__(self) -> int:
        return len(self._roles)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens (V, D) of one image (1, 3, H, W), by tower and projector."""
        values = pixel_values.to(self.vlm.device, self.vlm.dtype)
        try:
            output = self.vlm.model.get_image_features(pixel_values=values)
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.vlm.name} can't turn pixel values alone into visual tokens ({error}); this "
                "attack is for models in the manner of LLaVA 1.5."
            ) from error
        tokens = getattr(output, "pooler_output", output)
        tokens = torch.cat(list(tokens), dim=0) if isinstance(tokens, (list, tuple)) else tokens
        return tokens.reshape(-1, tokens.shape[-1])

    def batch(self, rows: Sequence[int], features: Tensor) -> Batch:
        """Embedded inputs of the requests `rows`, their image tokens replaced by `features`."""
        device = self.vlm.device
        index = torch.as_tensor(list(rows))
        roles = self._roles[index]
        first = int((roles != Role.PAD).any(dim=0).int().argmax())  # no columns of padding alone
        roles = roles[:, first:].to(device)
        inputs = {key: value[index, first:].to(device) for key, value in self._rows.items()}
        embedded = self.vlm.model.get_input_embeddings()(inputs.pop("input_ids"))
        is_image = roles == Role.IMAGE
        if int(is_image[0].sum()) != len(features):
            raise ModelError(
                f"{self.vlm.name} makes {len(features)} visual tokens but its prompts hold "
                f"{int(is_image[0].sum())} image tokens."
            )
        visual = features.to(embedded).expand(len(index), *features.shape)
        inputs["inputs_embeds"] = embedded.masked_scatter(is_image[..., None], visual)
        return Batch(inputs, roles)

    def total(self, rows: Sequence[int], features: Tensor, *, grad: bool) -> tuple[Tensor, int]:
        """Summed −log p (nats) of the response tokens of the requests `rows`, and their number."""
        batch = self.batch(rows, features)
        is_response = batch.roles == Role.RESPONSE
        longest = int(is_response.sum(dim=1).max())
        # The last position predicts what comes after; only the `longest` before it count.
        logits = self.vlm.forward(batch, logits_to_keep=longest + 1, grad=grad)[:, :-1].float()
        wanted = self._rows["input_ids"][torch.as_tensor(list(rows)), -longest:].to(logits.device)
        chosen = logits.gather(-1, wanted[..., None]).squeeze(-1) - logits.logsumexp(-1)
        is_response = is_response[:, -longest:].to(logits.device)
        return -(chosen * is_response).sum(), int(is_response.sum())

    def gradient(self, pixels: Tensor, rows: Sequence[int]) -> tuple[float, Tensor]:
        """Loss (nats per token) of the requests `rows` and its gradient (3, H, W)."""
        pixels = pixels.detach().requires_grad_()
        with torch.enable_grad():
            total, count = self.total(rows, self.features(self.path(pixels)), grad=True)
            loss = total / count
            if not loss.requires_grad:  # an edit cut the graph; nothing reaches the image
                return float(loss), torch.zeros_like(pixels)
            (gradient,) = torch.autograd.grad(loss, pixels)
        return float(loss.detach()), gradient

    @torch.no_grad()
    def loss(self, pixel_values: Tensor, rows: Sequence[int], batch: int) -> float:
        """Loss (nats per token) of an image (1, 3, H, W) over the requests `rows`."""
        features = self.features(pixel_values)
        chunks = [rows[begin : begin + batch] for begin in range(0, len(rows), batch)]
        parts = [self.total(chunk, features, grad=False) for chunk in chunks]
        return sum(float(total) for total, _ in parts) / sum(count for _, count in parts)

    @torch.no_grad()
    def verify(self, example: Example, levels: Tensor) -> None:
        """ModelError unless the first answer logits equal those of the model's own path."""
        own = self.vlm.forward(self.vlm.batch(example), logits_to_keep=1)[0, -1].float()
        batch = self.batch([0], self.features(self.path(levels / 255)))
        first = int((batch.roles == Role.RESPONSE).sum()) + 1
        ours = self.vlm.forward(batch, logits_to_keep=first)[0, 0].float()
        tolerance = 0.02 if self.vlm.dtype == torch.float32 else 0.2
        distance = float((own - ours).norm() / (own - own.mean()).norm().clamp_min(1e-6))
        if not distance <= tolerance:
            raise ModelError(
                f"{self.vlm.name} treats images in a way that can't be reproduced from its visual "
                f"tokens alone (logits differ by {distance:.2f} of their spread); this attack is "
                "for models in the manner of LLaVA 1.5."
            )


def _encode_all(
    vlm: VLM, examples: Sequence[Example], answers: Sequence[list[int]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Token rows (N, T) by name and roles (N, T), left-padded, without pixels, on the CPU."""
    parts: list[dict[str, Tensor]] = []
    for begin in range(0, len(examples), _ENCODED_AT_ONCE):
        chunk = slice(begin, begin + _ENCODED_AT_ONCE)
        inputs, roles = encode(
            vlm.processor, examples[chunk], answers[chunk], vlm.anatomy.image_token_id
        )
        rows = {
            key: value
            for key, value in inputs.items()
            if isinstance(value, Tensor) and value.shape == roles.shape
        }
        parts.append({**rows, "roles": roles})
    width = max(part["roles"].shape[1] for part in parts)
    fill = {"input_ids": vlm.tokenizer.pad_token_id, "roles": int(Role.PAD)}
    joined = {}
    for key in parts[0]:
        padded = [
            functional.pad(part[key], (width - part[key].shape[1], 0), value=fill.get(key, 0))
            for part in parts
        ]
        joined[key] = torch.cat(padded)
    return joined, joined.pop("roles")


@contextmanager
def attackable(vlm: VLM) -> Iterator[None]:
    """Evaluation mode, frozen weights and, on the CPU, eager attention; all of it put back.

    Frozen weights keep autograd from storing the inputs of linear layers. The backward pass of
    fused attention took 40 % of a step on a CPU.
    """
    model = vlm.model
    training = [module for module in model.modules() if module.training]
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    with ExitStack() as stack:

        def put_back() -> None:
            for module in training:
                module.training = True  # one by one: train() would reach the children as well
            for weight in trainable:
                weight.requires_grad_(True)

        stack.callback(put_back)
        model.eval()
        for weight in trainable:
            weight.requires_grad_(False)
        if vlm.device.type == "cpu":
            before = _attention(model.config)
            if set(before.values()) != {"eager"}:
                stack.callback(model.set_attn_implementation, before)
                model.set_attn_implementation("eager")
        yield


def _attention(config: Any) -> dict[str, str]:
    """Attention implementation of the model ("") and of each of its parts."""
    found = {"": config._attn_implementation}
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None:
            found[key] = part._attn_implementation
    return found


def to_picture(levels: Tensor) -> Image.Image:
    """8-bit RGB image of levels (3, H, W) between 0 and 255."""
    array = levels.detach().round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def _not_differentiable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name} can't be differentiated through: {reason}; this attack needs a processor that "
        "resizes to one size and normalises, as LLaVA 1.5's does."
    )
