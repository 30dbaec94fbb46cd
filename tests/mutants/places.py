"""Files and tests that faults of several areas name."""

from __future__ import annotations

BACKWARD = "lightning_dp/gradients/backward.py"
CONTRIBUTIONS = "lightning_dp/gradients/contributions/base.py"
PRODUCT_SUM = "lightning_dp/gradients/contributions/product_sum.py"
ENGINE = "lightning_dp/gradients/engine.py"
GENERIC = "lightning_dp/gradients/generic.py"
NOISE = "lightning_dp/gradients/noise.py"
TAPS = "lightning_dp/gradients/taps.py"
LEDGER = "lightning_dp/accounting/ledger.py"
STRATEGY = "lightning_dp/strategies/base.py"
PLANNED = "lightning_dp/strategies/planned.py"
BUDGET = "lightning_dp/strategies/budget.py"
NOISES = "tests/gradients/test_noise.py"
ROUTES = "tests/gradients/test_routes.py"
UNITS = "tests/gradients/test_units.py"
TRAPS = "tests/traps/test_traps.py"
