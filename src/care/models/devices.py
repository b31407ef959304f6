"""Where the parts of a model are, also when their weights are put aside.

accelerate's offloading leaves placeholders without data (device `meta`) in a module and brings the
weights back while it runs. The hook that does so knows where that is.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from care.errors import ModelError


def device_of(module: torch.nn.Module, model: Any = None) -> torch.device:
    """Where the inputs of `module`, which has weights, have to be.

    `model` is the whole, whose `hf_device_map` is asked where no hook is. Raises ModelError where
    nothing tells.
    """
    weight = next(module.parameters())
    if weight.device.type != "meta":
        return weight.device
    for part in (module, model):
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None and torch.device(device).type != "meta":
                return torch.device(device)
    placed = dict(getattr(model, "hf_device_map", None) or {}).values()
    devices = [torch.device(place) for place in placed if place not in ("disk", "meta")]
    if devices:  # what is offloaded runs where the rest does, on the CPU if there is nothing else
        return next((device for device in devices if device.type != "cpu"), devices[0])
    raise ModelError(
        f"The weights of {type(module).__name__} are placeholders without data (device meta), and "
        "nothing tells where they run; load the model with a device_map, or without offloading."
    )


def weight_of(module: torch.nn.Module) -> Tensor:
    """The weight of a linear layer, fetched from where it was put aside.

    Raises ModelError where that can't be done, and for a quantized one.
    """
    return parameter_of(module, "weight")


def parameter_of(module: torch.nn.Module, name: str) -> Tensor:
    """A parameter by name; otherwise as `weight_of`."""
    weight = getattr(module, name)
    assert isinstance(weight, Tensor)
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise ModelError(
            f"A weight of {type(module).__name__} is quantized ({kind}), so its numbers can't be "
            "read; load the model without quantization."
        )
    if weight.device.type != "meta":
        return weight.detach()
    for hook in _hooks(module):
        if getattr(hook, "weights_map", None) is not None:
            return hook.weights_map[name].detach()
    raise ModelError(
        f"A weight of {type(module).__name__} is a placeholder without data (device meta), so it "
        "can't be read; load the model without offloading."
    )


def _hooks(module: Any) -> Iterator[Any]:
    """accelerate's hooks of a module, those of a chain one by one."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
