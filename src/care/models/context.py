"""How many tokens a model can read, prompt and answer together."""

from typing import Any

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")


def context_limit(config: Any) -> int | None:
    """Positions of a model's text part, by its configuration; None where none are stated.

    Rotary positions that are stretched by a factor reach further than those trained on, which some
    configurations state in the place of the limit. Sliding windows limit what a position sees, not
    how many there are.
    """
    config = config.get_text_config()
    stated = next((n for n in (getattr(config, name, None) for name in _NAMES) if n), None)
    if type(stated) is not int or stated < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    factor, kind = rope.get("factor"), rope.get("rope_type", rope.get("type"))
    trained = rope.get("original_max_position_embeddings", stated if kind == "dynamic" else None)
    if isinstance(factor, int | float) and isinstance(trained, int | float):
        return max(stated, int(factor * trained))
    return stated
