"""Step sizes that fall polynomially."""

from __future__ import annotations

import pytest
import torch

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.posterior import PolynomialStepSize


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def test_step_sizes_follow_the_formula_and_resume() -> None:
    """a (b + t)^-gamma with a = lr b^gamma."""
    sgd = optimizer()
    schedule, found = PolynomialStepSize(sgd, offset=10, decay=0.7), []
    for t in range(6):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
        if t == 2:
            state, schedule = schedule.state_dict(), PolynomialStepSize(optimizer(), offset=10, decay=0.7)
            schedule.load_state_dict(state)
            schedule.optimizer = sgd
    a = 0.5 * 10**0.7
    assert found == pytest.approx([a * (10 + t) ** -0.7 for t in range(6)])


@pytest.mark.parametrize("decay", [0.5, 1.01, -1])
def test_decays_that_do_not_converge_are_refused(decay: float) -> None:
    with pytest.raises(PrivacyConfigError, match=r"\(0.5, 1\]"):
        PolynomialStepSize(optimizer(), decay=decay)
    with pytest.raises(PrivacyConfigError, match="offset"):
        PolynomialStepSize(optimizer(), offset=0)
