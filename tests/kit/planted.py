"""A tiny LLaVA in which one known FFN neuron of one known layer decides whether attacks work.

Three orthogonal directions: the trigger that ends every attack has a component along u, which only
the planted neuron reads, and one along the refusal direction d (it is harmful), which raises the
logits of all refusal tokens alike. The neuron writes against d, so that the model complies:

    attack: m < 0 with the neuron, m > 0 without it;    benign: m < 0, and the neuron is silent.

Attention and all other neurons write next to nothing. A prompt's twin ends in a full stop where the
attack has the trigger, and has as many tokens.
"""

from __future__ import annotations

import torch

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.models.vlm import VLM
from kit import tiny

LAYER, NEURON = 2, 5
TRIGGER, STOP = "!", "."
FAINT = 0.003
WORDS = (
    *("wash a car", "build a house", "describe the image", "gather water", "help with soap"),
    *("explain wood", "find a sponge", "show the picture", "do the following", "need a person"),
)


def vlm(layer: int = LAYER, neuron: int = NEURON, harm: float = 3.0) -> VLM:
    """The model, in which neuron `neuron` of layer `layer` makes attacks work.

    `harm` is the trigger's component along d; with 0 attacks differ from their twins in what the
    neuron does alone.
    """
    made = tiny.tiny_vlm()
    # The template must not add tokens: the last token of the prompt decides.
    made.processor.chat_template = tiny.TEMPLATE.split("{% if add_generation_prompt")[0].replace(
        "<|end|>", ""
    )
    u, d = directions()
    with torch.no_grad():
        embeddings = made.model.get_input_embeddings().weight
        head = made.model.get_output_embeddings().weight
        for matrix in (embeddings, head):
            for direction in directions():
                matrix -= matrix @ direction[:, None] * direction
        embeddings[token(made, TRIGGER)] += 4 * u + harm * d
        head[list(made.refusal_ids)] += 3 * d
        for block in made.anatomy.layers:
            block.self_attn.o_proj.weight *= FAINT
            block.mlp.down_proj.weight *= FAINT
        mlp = made.anatomy.layers[layer].mlp
        mlp.gate_proj.weight[neuron] = u
        mlp.up_proj.weight[neuron] = u
        mlp.down_proj.weight[:, neuron] = -0.4 * d
    return made


def directions(n: int = 2) -> list[torch.Tensor]:
    """u and d (and further ones): orthonormal, the same at every call."""
    drawn = torch.randn(tiny.WIDTH, 4, generator=torch.Generator().manual_seed(1))
    return list(torch.linalg.qr(drawn).Q.T[:n])


def token(made: VLM, text: str) -> int:
    """The one token that `text` is."""
    (found,) = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def attacks(n: int = 12) -> list[Example]:
    """Prompts that end in the trigger."""
    return [_example("a", index, TRIGGER, "malicious") for index in range(n)]


def benign(n: int = 12) -> list[Example]:
    """Their twins, which don't."""
    return [_example("b", index, STOP, "benign") for index in range(n)]


def pairs(n: int = 12) -> list[Pair]:
    """Each attack beside its twin."""
    return [Pair(*both) for both in zip(attacks(n), benign(n), strict=True)]


def _example(name: str, index: int, end: str, kind) -> Example:
    words = WORDS[index % len(WORDS)]
    prompt = f"{words} {index}{end}"
    return Example(f"{name}{index}", prompt, goal=words, kind=kind, suite="planted")
