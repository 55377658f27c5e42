"""Models, schedulers and pipelines of diffusers 0.42 (extra `diffusers`)."""

from typing import TYPE_CHECKING

from linear_structure.system.lazy import lazily

if TYPE_CHECKING:
    from edm.adapters.diffusers.models import network_of_model
    from edm.adapters.diffusers.pipelines import sample, teleported
    from edm.adapters.diffusers.schedules import cut, position
    from edm.adapters.diffusers.suggestion import suggested_skip
else:
    __getattr__ = lazily(__name__, __file__)

__all__ = ["cut", "network_of_model", "position", "sample", "suggested_skip", "teleported"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
