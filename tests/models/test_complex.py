"""Complex layers: whitening gives unit covariance, each layer is its real twin, and all are exact in the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.reals import as_real
from lightning_dp.gradients.rules import find_rule
from lightning_dp.models import (
    Cardioid,
    ComplexAvgPool,
    ComplexCNN,
    ComplexConv1d,
    ComplexConv2d,
    ComplexGroupNorm,
    ComplexLayerNorm,
    ComplexLinear,
    ConjugateMish,
    ConjugatePool,
    IGaussian,
    Magnitude,
    RealPart,
    SeparableMish,
    StandardisedComplexConv2d,
    TwoChannelCNN,
)
from lightning_dp.models.complex import apply_matrix, whitened, whitening_matrix
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients
from tests.gradients.rules.agreement import assert_agrees

C64, C128 = torch.complex64, torch.complex128
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (Cardioid, ConjugateMish, IGaussian, SeparableMish)


def correlated(*shape: int, dtype: torch.dtype = C128) -> Tensor:
    """Parts of different size, correlated, away from zero."""
    z = torch.randn(*shape, dtype=C128)
    return torch.complex(3 * z.real + 5, z.real - 0.4 * z.imag - 2).to(dtype)


def covariance(z: Tensor) -> Tensor:
    """``(..., 2, 2)`` over the last axis."""
    parts = as_real(z - z.mean(-1, keepdim=True))
    return torch.einsum("...mi,...mj->...ij", parts, parts) / z.shape[-1]


# --- whitening --------------------------------------------------------------------------------------------------------


def test_the_matrix_is_the_inverse_root_of_the_covariance() -> None:
    """W Cov W' = I, W symmetric; and equal to the root that an eigendecomposition gives."""
    torch.manual_seed(0)
    cov = covariance(correlated(50, 40))
    w = whitening_matrix(cov[:, 0, 0], cov[:, 1, 1], cov[:, 0, 1], 0.0)
    torch.testing.assert_close(w @ cov @ w.mT, torch.eye(2, dtype=torch.float64).expand(50, 2, 2))
    torch.testing.assert_close(w, w.mT)
    values, vectors = np.linalg.eigh(cov.numpy())
    root = (vectors / np.sqrt(values)[:, None]) @ vectors.transpose(0, 2, 1)
    np.testing.assert_allclose(w.numpy(), root, rtol=1e-8)


def test_whitened_numbers_have_no_mean_and_unit_covariance() -> None:
    torch.manual_seed(1)
    z = whitened(correlated(6, 500), eps=1e-12)
    assert float(z.mean(-1).abs().max()) < 1e-10
    torch.testing.assert_close(covariance(z), torch.eye(2, dtype=torch.float64).expand(6, 2, 2))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e5])
@pytest.mark.parametrize("kind", ["line", "real", "imaginary", "constant", "one"])
def test_degenerate_numbers_stay_finite_with_finite_gradients(kind: str, scale: float) -> None:
    """Numbers on a line have a singular covariance, where rounding may leave a negative determinant."""
    torch.manual_seed(2)
    t = torch.randn(4, 60)
    z = {
        "line": torch.complex(t, 2 * t),
        "real": torch.complex(t, torch.zeros_like(t)),
        "imaginary": torch.complex(torch.zeros_like(t), t),
        "constant": torch.full((4, 60), 3 - 2j),
        "one": torch.randn(4, 1, dtype=C64),
    }[kind] * scale
    z.requires_grad_()
    out = whitened(z)
    out.abs().square().sum().backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(out).all())
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())
    assert float(out.detach().abs().max()) < 100


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (ComplexGroupNorm(2, 6), (4, 6, 5, 7)),
        (ComplexGroupNorm(1, 6), (4, 6, 30)),
        (ComplexGroupNorm(2, 6), (4, 6)),
        (ComplexLayerNorm(30), (4, 3, 30)),
        (ComplexLayerNorm((5, 6)), (4, 3, 5, 6)),
    ],
    ids=["group", "one_group", "flat", "layer", "layer_2d"],
)
def test_norms_whiten_within_a_sample_and_agree_with_a_plain_loop(norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    z = correlated(*shape, dtype=C64)
    groups = norm.num_groups if isinstance(norm, ComplexGroupNorm) else int(np.prod(shape[1:-len(norm.normalized_shape)]))  # type: ignore[arg-type]  # fmt: skip
    out = norm(z).detach().reshape(shape[0], groups, -1)
    if out.shape[-1] > 10:
        torch.testing.assert_close(
            covariance(out), (torch.eye(2) / 2).expand(shape[0], groups, 2, 2), atol=1e-3, rtol=0
        )
    torch.testing.assert_close(norm(z[:1]), norm(z)[:1])  # no sample sees another
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p))
    for units in (UnitMap(4), UnitMap(2), UnitMap(3, torch.tensor([2, 0, 2, 1]))):
        assert_agrees(norm, lambda module: as_real(torch.tanh(module(z))), units)
    assert find_rule(norm) is not None


def test_group_norm_of_one_group_is_layer_norm() -> None:
    torch.manual_seed(4)
    z = correlated(3, 4, 5, 6, dtype=C64)
    torch.testing.assert_close(
        ComplexGroupNorm(1, 4, affine=False)(z), ComplexLayerNorm((4, 5, 6), affine=False)(z), rtol=1e-4, atol=1e-5
    )


def test_a_change_of_scale_does_not_pass_a_norm() -> None:
    torch.manual_seed(5)
    z = correlated(3, 4, 8, 8, dtype=C64)
    norm = ComplexGroupNorm(2, 4)
    torch.testing.assert_close(norm(z * 7.0), norm(z), rtol=1e-3, atol=1e-3)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "function"),
    [
        (ComplexLinear(5, 3, bias=True), (4, 5), F.linear),
        (
            ComplexConv1d(4, 6, 3, stride=2, padding=1, groups=2),
            (4, 4, 9),
            lambda x, w: F.conv1d(x, w, None, 2, 1, 1, 2),
        ),
        (ComplexConv2d(2, 3, 3, padding="same"), (4, 2, 6, 5), lambda x, w: F.conv2d(x, w, None, 1, 1)),
    ],
    ids=["linear", "conv1d", "conv2d"],
)
def test_layers_are_four_real_ones(
    layer: nn.Module, shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """``(A a - B b) + i (A b + B a)``."""
    torch.manual_seed(6)
    z, weight = torch.randn(*shape, dtype=C64), layer.get_parameter("weight").detach()
    a, b, real, imag = z.real, z.imag, weight.real, weight.imag
    truth = torch.complex(function(a, real) - function(b, imag), function(b, real) + function(a, imag))
    torch.testing.assert_close(layer(z), truth)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(lambda: ComplexLinear(400, 300), (50, 400)), (lambda: ComplexConv2d(40, 200, 3), (20, 40, 6, 6))],
)
def test_layers_start_circular_and_keep_the_mean_square(layer: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Limits of at least seven standard errors."""
    torch.manual_seed(7)
    made = layer()
    weight = made.get_parameter("weight").detach().flatten(1)
    weight = weight * weight.shape[1] ** 0.5
    n = weight.numel()
    assert abs(float(weight.abs().square().mean()) - 1) < 7 / n**0.5
    assert abs(complex(weight.square().mean())) < 10 / n**0.5
    z = torch.randn(*shape, dtype=C64)
    assert float(made(z).detach().abs().square().mean()) == pytest.approx(1.0, rel=0.1)


def test_a_standardised_weight_is_white_and_its_scale_does_not_matter() -> None:
    torch.manual_seed(8)
    layer = StandardisedComplexConv2d(8, 5, 3)
    z = torch.randn(4, 8, 6, 6, dtype=C64)
    before = layer(z)
    with torch.no_grad():
        layer.weight.mul_(5.0).add_(0.3 - 0.2j)
    torch.testing.assert_close(layer(z), before, rtol=1e-2, atol=1e-2)
    assert find_rule(layer) is None  # a computed weight: the fallback differentiates it


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_activations_differentiate_as_finite_differences(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(9)
    z = torch.randn(20, dtype=C128).requires_grad_()
    assert torch.autograd.gradcheck(make(), (z,))
    small = torch.zeros(3, dtype=C64, requires_grad=True)  # no direction: nothing undefined
    out = make()(small)
    out.real.sum().backward()
    assert small.grad is not None
    assert bool(torch.isfinite(as_real(small.grad)).all())
    torch.testing.assert_close(out.detach(), torch.zeros(3, dtype=C64))


def test_activations_are_what_their_formulas_say() -> None:
    torch.manual_seed(10)
    z = torch.randn(50, dtype=C128)
    phase, mish = z.angle(), F.mish
    torch.testing.assert_close(Cardioid()(z), 0.5 * (1 + torch.cos(phase)) * z)
    torch.testing.assert_close(SeparableMish()(z), torch.complex(mish(z.real), mish(z.imag)))
    torch.testing.assert_close(
        ConjugateMish()(z), torch.complex(mish(z.real) - mish(z.imag), mish(z.real) + mish(z.imag))
    )
    bounded = 1 - torch.exp(-z.abs().square() / (2 * 0.4**2))
    torch.testing.assert_close(IGaussian()(z), torch.polar(bounded, phase))
    real = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(Cardioid()(real.to(C128)), real.relu().to(C128))


def test_which_activations_commute_with_a_change_of_phase() -> None:
    torch.manual_seed(11)
    z, turn = torch.randn(50, dtype=C128), torch.polar(torch.tensor(1.0).double(), torch.tensor(0.7).double())
    torch.testing.assert_close(IGaussian()(z * turn), IGaussian()(z) * turn)
    for other in (Cardioid(), ConjugateMish(), SeparableMish()):
        assert float((other(z * turn) - other(z) * turn).abs().max()) > 0.1
    assert bool((IGaussian()(z * 100).abs() <= 1 + 1e-9).all())


def test_pooling_and_heads() -> None:
    torch.manual_seed(12)
    z = torch.randn(2, 3, 5, 4, dtype=C64)
    means = z[:, :, :4].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close(ComplexAvgPool(2)(z), means)
    torch.testing.assert_close(ComplexAvgPool(0)(z)[..., 0, 0], z.mean((2, 3)))
    largest = [F.max_pool2d(part, 2) for part in (z.real, z.imag)]
    torch.testing.assert_close(ConjugatePool(2)(z), torch.complex(largest[0] - largest[1], largest[0] + largest[1]))
    assert ConjugatePool(0)(z).shape == (2, 3, 1, 1)
    torch.testing.assert_close(Magnitude(1e-12)(z), z.abs())
    torch.testing.assert_close(RealPart()(z), z.real)


# --- networks in the engine -------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: ComplexCNN(2, widths=(4, 6), groups=2), (5, 2, 8, 8)),
    "cnn_cardioid": (lambda: ComplexCNN(2, widths=(4, 6), groups=2, activation="cardioid", head="real"), (5, 2, 8, 8)),
    "cnn_igaussian": (lambda: ComplexCNN(1, widths=(4,), activation="igaussian", pooling="conjugate"), (5, 1, 6, 6)),
    "two_channel": (lambda: TwoChannelCNN(2, widths=(4, 6)), (5, 2, 8, 8)),
    "standardised": (
        lambda: nn.Sequential(StandardisedComplexConv2d(2, 3, 3), SeparableMish(), ComplexAvgPool(0), Magnitude(0.1)),
        (5, 2, 6, 6),
    ),
    "sequence": (
        lambda: nn.Sequential(
            ComplexConv1d(2, 4, 3, bias=True), ComplexGroupNorm(2, 4), Cardioid(), ComplexLinear(7, 3), Magnitude(0.1)
        ),
        (5, 2, 9),
    ),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_clipped_sum_is_that_of_a_plain_loop(name: str) -> None:
    torch.manual_seed(13)
    make, shape = NETWORKS[name]
    module, z = make(), torch.randn(*shape, dtype=C64)
    y = torch.linspace(-1, 1, len(z))
    gradients = unit_gradients(module, squared_loss, z, y)
    bound = float(torch.tensor([torch.cat([as_real(g).flatten() for g in unit]).norm() for unit in gradients]).median())
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, z, y), len(z))
        assert relative_error(engine.clipped_sum(), truth) < 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ComplexCNN(activation="relu"), "conjugate_mish"),  # type: ignore[arg-type]
        (lambda: ComplexCNN(head="max"), "magnitude"),  # type: ignore[arg-type]
        (lambda: ComplexCNN(pooling="max"), "average"),  # type: ignore[arg-type]
        (lambda: ComplexCNN(widths=()), "at least one"),
        (lambda: ComplexGroupNorm(3, 4), "divisor"),
        (lambda: ComplexAvgPool(-1), "whole map"),
        (lambda: ComplexCNN(2)(torch.randn(1, 1, 8, 8, dtype=C64)), "in_channels, H, W"),
        (lambda: ComplexCNN(1)(torch.randn(1, 1, 8, 8)), "TwoChannelCNN"),
        (lambda: ComplexGroupNorm(2, 4)(torch.randn(2, 4, 3)), "complex numbers"),
        (lambda: ComplexGroupNorm(2, 4)(torch.randn(2, 3, 3, dtype=C64)), "axis 1"),
        (lambda: ComplexLayerNorm(4)(torch.randn(2, 3, dtype=C64)), "last axes"),
        (lambda: ComplexAvgPool(2)(torch.randn(2, 3, 4, dtype=C64)), "complex images"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        make()


def test_apply_matrix_is_the_matrix_on_the_parts() -> None:
    torch.manual_seed(14)
    matrix, z = torch.randn(5, 2, 2), torch.randn(3, 5, dtype=C64)
    truth = torch.view_as_complex(torch.einsum("cij,ncj->nci", matrix, as_real(z)).contiguous())
    torch.testing.assert_close(apply_matrix(matrix, z), truth)
