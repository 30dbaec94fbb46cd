"""The mechanism event of one clipped, noised vector of every sample."""

from __future__ import annotations

from lightning_dp.accounting.events import GaussianEvent, Relation
from lightning_dp.errors import PrivacyConfigError

__all__ = ("RELEASE_SENSITIVITY", "release_event")

#: How far one record moves the released vectors, in units of their clipping bound C: two vectors of norm C lie up to 2C
#: apart; a record that is not there counts as the zero vector.
RELEASE_SENSITIVITY: dict[Relation, float] = {"replace_one": 2.0, "add_or_remove_one": 1.0}


def release_event(noise_multiplier: float, relation: Relation) -> GaussianEvent:
    """One release of every sample: a vector of norm at most C, with N(0, (noise_multiplier C)^2) on every coordinate.

    **Guarantee**: each release is the Gaussian mechanism on one record, of index ``mu = 2 / noise_multiplier`` under
    replace-one and ``1 / noise_multiplier`` under add-or-remove-one; k releases of a record have ``mu sqrt(k)``. No sampling
    is assumed, so the number is the same in the *local* reading (whoever sees a record's release) and in the *central* one
    (whoever sees everything): a record touches its own releases and nothing else. Under add-or-remove-one a record that
    is not there is one whose activation is the zero vector; how many records there are is public.

    Args:
        noise_multiplier: Noise standard deviation over C, >= 0.
        relation: ``"replace_one"`` or ``"add_or_remove_one"``.
    """
    if relation not in RELEASE_SENSITIVITY:
        raise PrivacyConfigError(f"relation must be one of {tuple(RELEASE_SENSITIVITY)}, got {relation!r}.")
    return GaussianEvent(noise_multiplier / RELEASE_SENSITIVITY[relation], sampling="none", relation=relation)
