"""Models: a vision-language model, its sites, and how activations are read and edited."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.models.alarms import Withdrawn as Withdrawn
    from care.models.hooks import edit as edit
    from care.models.hooks import read as read
    from care.models.sites import Role as Role
    from care.models.sites import Scope as Scope
    from care.models.sites import Site as Site
    from care.models.vlm import VLM as VLM

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "alarms": ["Withdrawn"],
        "vlm": ["VLM"],
        "sites": ["Site", "Scope", "Role"],
        "hooks": ["read", "edit"],
    },
)
