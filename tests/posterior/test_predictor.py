"""Averaged predictions: against a plain loop and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.posterior import PosteriorPredictor, posterior_forward

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def net(out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out)).eval()


def draws(module: nn.Module, number: int = 3, scale: float = 1.0) -> list[dict[str, Tensor]]:
    return [{name: torch.randn_like(p) * scale for name, p in module.named_parameters()} for _ in range(number)]


def by_hand(module: nn.Module, samples: list[dict[str, Tensor]]) -> Tensor:
    """Outputs, one sample after the other, of a network that really has its weights."""
    before, outputs = {k: v.clone() for k, v in module.state_dict().items()}, []
    for sample in samples:
        module.load_state_dict(sample)
        outputs.append(module(X).detach())
    module.load_state_dict(before)
    return torch.stack(outputs)


def test_means_and_entropies_are_those_of_a_plain_loop() -> None:
    module = net()
    samples = draws(module)
    p = by_hand(module, samples).double().softmax(-1).numpy()
    found = PosteriorPredictor(module, samples)(X)
    mean = p.mean(0)
    entropy, expected = -(mean * np.log(mean)).sum(-1), -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(found.probabilities, mean, rtol=1e-5)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(found.expected_entropy, expected, rtol=1e-5)
    np.testing.assert_allclose(found.mutual_information, entropy - expected, atol=1e-6)
    assert not found.probabilities.requires_grad


def test_samples_that_agree_share_no_information() -> None:
    module = net()
    found = PosteriorPredictor(module, draws(module, 1) * 5)(X)
    torch.testing.assert_close(found.entropy, found.expected_entropy)
    assert float(found.mutual_information.max()) < 1e-6


def test_samples_that_are_sure_of_different_classes() -> None:
    """Two samples, each certain, of different classes: all uncertainty, log 2 nats, is disagreement."""
    module = nn.Linear(1, 2, bias=False).eval()
    samples = [{"weight": torch.tensor([[1e4], [0.0]])}, {"weight": torch.tensor([[0.0], [1e4]])}]
    found = PosteriorPredictor(module, samples)(torch.ones(3, 1))
    torch.testing.assert_close(found.mutual_information, torch.full((3,), math.log(2)))
    torch.testing.assert_close(found.expected_entropy, torch.zeros(3))


def test_the_averaged_output_gives_the_mean_probabilities() -> None:
    module, labels = net(), torch.arange(6) % 4
    samples = draws(module, scale=3.0)
    mean = by_hand(module, samples).softmax(-1).mean(0)
    averaged = PosteriorPredictor(module, samples).averaged(X)
    torch.testing.assert_close(averaged.softmax(-1), mean)
    torch.testing.assert_close(F.cross_entropy(averaged, labels), -mean[torch.arange(6), labels].log().mean())


def test_yes_or_no() -> None:
    module = net(1)
    samples = draws(module)
    mean = by_hand(module, samples).sigmoid().mean(0)
    predictor = PosteriorPredictor(module, samples, output="sigmoid")
    found = predictor(X)
    torch.testing.assert_close(found.probabilities, mean)
    torch.testing.assert_close(predictor.averaged(X).sigmoid(), mean)
    torch.testing.assert_close(found.entropy, -(mean * mean.log() + (1 - mean) * (1 - mean).log()))


def test_values_are_averaged_as_they_are() -> None:
    module = net(1)
    samples = draws(module)
    predictor = PosteriorPredictor(module, samples, output="values")
    torch.testing.assert_close(predictor.averaged(X), by_hand(module, samples).mean(0))
    with pytest.raises(PrivacyConfigError, match="averaged"):
        predictor(X)


def test_half_precision_samples_and_a_part_of_the_module() -> None:
    module = net()
    samples = [{f"net.{k}": v.half() for k, v in s.items()} for s in draws(module)]
    exact = [{k.removeprefix("net."): v.float() for k, v in s.items()} for s in samples]
    found = PosteriorPredictor(module, samples, prefix="net.").averaged(X)
    torch.testing.assert_close(found, PosteriorPredictor(module, exact).averaged(X))


def test_the_module_is_left_as_it_is() -> None:
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with posterior_forward(PosteriorPredictor(module, draws(module))):
        module(X)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert not module._forward_hooks


def test_calls_are_averaged_and_counted_while_it_is_open() -> None:
    module = net()
    predictor = PosteriorPredictor(module, draws(module))
    with posterior_forward(predictor) as calls:
        assert calls() == 0
        torch.testing.assert_close(module(X), predictor.averaged(X))
    assert calls() >= 1
    assert not torch.allclose(module(X), predictor.averaged(X))


def test_an_exception_leaves_no_hook() -> None:
    module = net()
    with pytest.raises(ZeroDivisionError), posterior_forward(PosteriorPredictor(module, draws(module))):
        raise ZeroDivisionError
    assert not module._forward_hooks


def test_what_cannot_be_averaged_is_refused() -> None:
    module = net()
    samples = draws(module)
    with pytest.raises(PrivacyConfigError, match="no posterior samples"):
        PosteriorPredictor(module, [])
    with pytest.raises(PrivacyConfigError, match=r"(?s)0\.weight.*different iterates"):
        PosteriorPredictor(module[2], samples)
    with pytest.raises(PrivacyConfigError, match="sigmoid"):
        PosteriorPredictor(net(1), draws(net(1)))(X)
    with pytest.raises(PrivacyConfigError, match="unknown output"):
        PosteriorPredictor(module, samples, output="logits")  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="probabilities"):
        PosteriorPredictor(nn.Sequential(*module, nn.Softmax(1)).eval(), samples)(X)
    with pytest.raises(PrivacyConfigError, match="eval"):
        PosteriorPredictor(module.train(), samples)(X)


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Several(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    module = Several(3, 2).eval()
    with pytest.raises(PrivacyConfigError, match="tuple"):
        PosteriorPredictor(module, draws(module))(X)
