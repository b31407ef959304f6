"""The tokens of N requests about one image, laid out once: whole rows, or a shared beginning.

All requests begin alike, with the template's opening and the image, so the model need read that
part once and not N times: its keys and values, one row, are expanded over the batch, and the rest
of each request follows,

    [ beginning, S ] [ padding, rest of the prompt, answer, t ]

A causal model computes the same either way. With 36 of 76 tokens shared by 8 requests that is half
of the work, with LLaVA 1.5's 576 image tokens it is nearly all. Nothing here runs the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from care.data.example import Example
from care.errors import ModelError
from care.models.batches import encode
from care.models.prompt_cache import plain_positions, position_ids
from care.models.sites import Role
from care.models.vlm import VLM

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class PassInputs:
    """What the model is given in one pass, before image tokens are put in."""

    inputs: dict[str, Tensor]
    """`input_ids` (B, t) and whatever else has one entry a position; `attention_mask` may be
    longer, `position_ids` is (B, t) or (3, B, t), or absent."""

    roles: Tensor
    """`Role` of every position (B, t)."""


class TokenRows:
    """Requests with their answers, left-padded to one width, on the CPU."""

    def __init__(
        self,
        vlm: VLM,
        examples: Sequence[Example],
        answers: Sequence[list[int]],
        grid: Tensor | None,
    ) -> None:
        """Encode; `grid` is `image_grid_thw` (1, 3) of the image for models that ask for it."""
        self.inputs, self.roles = _encode_all(vlm, examples, answers)
        self.counts = torch.tensor([len(answer) for answer in answers])
        self.ids = self.inputs["input_ids"]
        counts = (self.roles == Role.IMAGE).sum(dim=1)
        if not bool((counts == counts[0]).all()):
            raise ModelError("The requests hold unequal numbers of image tokens for one image.")
        self.lengths = (self.roles != Role.PAD).sum(dim=1)
        self.positions = _positions(vlm, self.inputs, self.roles, grid)
        self.shared = self._shared()

    def __len__(self) -> int:
        return len(self.roles)

    def answers(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Answer tokens (B, k), right-aligned, and which of them count (B, k)."""
        index = torch.as_tensor(list(rows))
        counts = self.counts[index]
        longest = int(counts.max())
        return self.ids[index, -longest:], torch.arange(longest) >= longest - counts[:, None]

    def whole(self, rows: Sequence[int]) -> PassInputs:
        """Complete requests, without columns of padding alone."""
        index = torch.as_tensor(list(rows))
        return self._part(index, self.roles.shape[1] - int(self.lengths[index].max()), None)

    def beginning(self) -> PassInputs:
        """The S positions that all requests share, as one row."""
        index, first = torch.tensor([0]), self.roles.shape[1] - int(self.lengths[0])
        return self._part(index, first, first + self.shared)

    def rest(self, rows: Sequence[int]) -> PassInputs:
        """What follows the beginning; the attention mask covers the beginning as well."""
        index = torch.as_tensor(list(rows))
        own = self.lengths[index] - self.shared
        width = int(own.max())
        part = self._part(index, self.roles.shape[1] - width, None)
        mask = torch.arange(width) >= width - own[:, None]
        attention = functional.pad(mask.long(), (self.shared, 0), value=1)
        roles = part.roles.masked_fill(~mask, int(Role.PAD))
        return PassInputs(part.inputs | {"attention_mask": attention}, roles)

    def _part(self, index: Tensor, first: int, last: int | None) -> PassInputs:
        inputs = {key: value[index, first:last] for key, value in self.inputs.items()}
        if self.positions is not None:
            inputs["position_ids"] = self.positions[..., index, first:last]
        return PassInputs(inputs, self.roles[index, first:last])

    def _shared(self) -> int:
        """Length S of the common beginning; 0 if it doesn't hold the whole image.

        The last position of a prompt is left to the rest: it decides the answer's first token.
        """
        width = self.roles.shape[1]
        prompts = self.lengths - (self.roles == Role.RESPONSE).sum(dim=1)
        rows = [self.ids[row, width - int(length) :] for row, length in enumerate(self.lengths)]
        most = int(prompts.min()) - 1
        if most < 1 or self.positions is None:
            return 0
        same = torch.stack([row[:most] == rows[0][:most] for row in rows]).all(dim=0)
        shared = int(same.long().cumprod(dim=0).sum())
        first = self.roles[0, width - int(self.lengths[0]) :]
        last_image = int((first == Role.IMAGE).nonzero().max())
        return shared if shared > last_image else 0


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


def _positions(
    vlm: VLM, inputs: dict[str, Tensor], roles: Tensor, grid: Tensor | None
) -> Tensor | None:
    """Positions (N, T) or (3, N, T) as the model itself counts them; None if that isn't known.

    The rotary positions of Qwen2-VL follow the image's grid, and the model can't work them out from
    embeddings.
    """
    mask = inputs["attention_mask"]
    if plain_positions(vlm.model):
        return position_ids(mask)
    finder: Any = getattr(getattr(vlm.model, "model", None), "get_rope_index", None)
    if finder is None or grid is None:
        return None
    types = inputs.get("mm_token_type_ids", (roles == Role.IMAGE).long())
    found, _ = finder(
        input_ids=inputs["input_ids"],
        mm_token_type_ids=types,
        image_grid_thw=grid.expand(len(roles), -1),
        attention_mask=mask,
    )
    return found
