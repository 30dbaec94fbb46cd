"""Layer rules: from a module's recorded input and output gradient to its parameters' per-unit contributions.

A rule is registered for one module class and applies to instances whose ``forward`` is that class's own; a subclass
that computes something else falls through to the generic rule. To add a layer, write one function and register it.
"""

from __future__ import annotations

from lightning_dp.gradients.rules import (  # noqa: F401  (importing registers the rules)
    attention,
    bag,
    bilinear,
    complex_norm,
    conv,
    conv_transpose,
    linear,
    norm,
    opacus_bias,
    prelu,
    recurrent,
    standardised,
)
from lightning_dp.gradients.rules.registry import (
    LayerCall,
    LayerRule,
    RowCounter,
    find_entry,
    find_rule,
    register_rule,
)

__all__ = ("LayerCall", "LayerRule", "RowCounter", "find_entry", "find_rule", "register_rule")
