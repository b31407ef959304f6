"""What Model Runner V2 keeps of its requests, told of the masks.

A model may bring this class to its runner (`get_model_state_cls`). It sees each request once, with
its prompt and arguments, and every step before that runs, also where the step is a CUDA graph.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def with_masks(known: type) -> type:
    """A state like `known` that writes the masks of its model's repair before each step."""

    class RepairedState(known):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._edited: dict[int, Any] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            arguments = getattr(new_req_data.sampling_params, "extra_args", None)
            self._edited[req_index] = self.model.care.edited(
                new_req_data.prompt_token_ids, arguments
            )

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            mask, length = self.model.care.mask, input_batch.num_tokens_after_padding
            if all(each in req_states.req_id_to_index for each in input_batch.req_ids):
                mask.write(
                    [self._edited[slot] for slot in input_batch.idx_mapping_np.tolist()],
                    input_batch.num_computed_tokens_np,
                    input_batch.num_scheduled_tokens,
                    length,
                )
            else:  # nobody's tokens: a profile, or a warm-up
                mask.clear(length)
            return super().prepare_inputs(input_batch, req_states)

    return RepairedState
