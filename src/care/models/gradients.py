"""A model through which gradients are taken, with respect to pictures or activations.

Its weights are frozen and it is evaluated; whatever is changed for that is put back. Not here: what
is differentiated (`care.attacks`, `care.diagnosis.neurons.attribution_patching`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from care.models.vlm import VLM


@contextmanager
def differentiable(vlm: VLM) -> Iterator[None]:
    """Evaluation mode, frozen weights and, on the CPU, eager attention; all of it put back.

    Frozen weights keep autograd from storing the inputs of linear layers. The backward pass of
    fused attention took 40 % of a step on a CPU. With frozen weights torch multiplies a slice of
    (B, T, D) row by row and copies the weight of the head for each row, so the head is given the
    last positions in one piece.
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
        head = model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: (args[0].contiguous(), *args[1:])
        )
        stack.callback(head.remove)
        if vlm.device.type == "cpu":
            before = _attention(model.config)
            if set(before.values()) != {"eager"}:
                stack.callback(model.set_attn_implementation, before)
                model.set_attn_implementation(dict.fromkeys(before, "eager"))
        yield


def _attention(config: Any) -> dict[str, str]:
    """Attention implementation of the model ("") and of each of its parts that attends."""
    found = {"": config._attn_implementation}
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None and part._attn_implementation is not None:  # Gemma 4 without a tower
            found[key] = part._attn_implementation
    return found
