"""One unit more or less moves the clipped sum by at most C: for every clipping, layer, precision, split and input.

The batches are neighbours under add-or-remove-one. What is added is ordinary, empty, tiny, huge or not finite;
the bound must hold for all of it, and a unit that is not finite must count as nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import (
    Clipping,
    ClippingName,
    EmbeddingRows,
    GradientEngine,
    LossReduction,
    OuterProduct,
    UnitMap,
)
from lightning_dp.gradients.contributions.base import row_squares
from lightning_dp.gradients.reals import as_real, carries_gradient
from tests.gradients import networks as net
from tests.gradients.complex_networks import COMPLEX
from tests.gradients.oracle import unit_gradients

CLIPPINGS: tuple[ClippingName, ...] = ("flat", "per_layer", "automatic")
BUILDERS = {**net.LAYERS, **net.NETWORKS, **COMPLEX}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": lambda t: t,
    "zero": torch.zeros_like,
    "tiny": lambda t: t * 1e-30,
    "large": lambda t: t * 1e4,
    "huge": lambda t: t * 1e15,
    "overflowing": lambda t: t * 1e30,
    "nan": lambda t: torch.full_like(t, math.nan),
    "one_nan": lambda t: t.flatten().index_fill(0, torch.tensor([0]), math.nan).view_as(t),
    "inf": lambda t: torch.full_like(t, math.inf),
}
SLACK = 1 + 1e-4


def norm(sums: Sequence[Tensor]) -> float:
    return float(torch.cat([as_real(g).flatten().double() for g in sums]).norm())


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return norm([as_real(a).double() - as_real(b).double() for a, b in zip(one, other, strict=True)])


def unit_losses(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = module(x).flatten(1)
    return ((out - torch.sin(torch.arange(out.shape[1], dtype=out.dtype)) * y[:, None]) ** 2).sum(1)


class Batch:
    """A network, its batch and the way it is trained; `total` gives the clipped sum over some of the rows."""

    def __init__(
        self,
        name: str,
        clipping: ClippingName = "flat",
        *,
        precision: str = "float32",
        split: int = 100,
        reduction: LossReduction = "mean",
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.module, self.x = BUILDERS[name]()
        self.clipping, self.split, self.reduction = Clipping(0.5, clipping), split, reduction
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.autocast = precision == "bf16"
        if self.dtype == torch.float64:
            self.module = self.module.double()  # complex parameters stay complex64
            self.x = self.x.double() if self.x.is_floating_point() else self.x
        self.y = torch.linspace(-1, 1, len(self.x), dtype=self.dtype)

    def make(self, row: int, kind: str) -> None:
        """Changes one unit; a table index cannot be changed so, and its target is instead."""
        if carries_gradient(self.x):
            self.x[row] = KINDS[kind](self.x[row])
        else:
            self.y[row] = KINDS[kind](self.y[row] + 0.3)

    @staticmethod
    def plain_loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return unit_losses(module, x, y).sum()

    def total(self, rows: Sequence[int], weights: Sequence[float] | None = None) -> tuple[list[Tensor], int]:
        with GradientEngine(
            self.module, self.clipping, noise_multiplier=0.0, expected_batch_size=1, loss_reduction=self.reduction
        ) as engine:
            for start in range(0, len(rows), self.split):
                part = torch.tensor(rows[start : start + self.split])
                chosen = None if weights is None else torch.tensor(weights[start : start + self.split])
                with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
                    losses = unit_losses(self.module, self.x[part], self.y[part])
                engine.backward(losses.mean() if self.reduction == "mean" else losses.sum(), len(part), chosen)
            return engine.clipped_sum(), engine.dropped_units


def check_neighbours(batch: Batch, row: int, kind: str, slack: float = SLACK) -> None:
    rows = list(range(len(batch.x)))
    without, dropped_without = batch.total([i for i in rows if i != row])
    batch.make(row, kind)
    (plain,) = unit_gradients(batch.module, batch.plain_loss, batch.x[row : row + 1], batch.y[row : row + 1])
    with_unit, dropped = batch.total(rows)
    bound = batch.clipping.sensitivity
    assert all(bool(torch.isfinite(g).all()) for g in with_unit), kind
    assert dropped_without == 0
    moved = difference(with_unit, without)
    assert moved <= bound * slack, kind
    if not math.isfinite(norm(plain)):
        assert dropped == 1, kind
    if dropped:  # counts for nothing, and leaves the others what they were
        assert moved <= bound * (slack - 1)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_one_unit_moves_the_sum_by_at_most_the_bound(name: str) -> None:
    for kind in KINDS:
        check_neighbours(Batch(name), 1, kind)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    kind=st.sampled_from(sorted(KINDS)),
    precision=st.sampled_from(["float32", "float64"]),
    split=st.sampled_from([1, 2, 3, 100]),
    reduction=st.sampled_from(["mean", "sum"]),
    row=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_any_combination_respects_the_bound(
    clipping: ClippingName,
    name: str,
    kind: str,
    precision: str,
    split: int,
    reduction: LossReduction,
    row: int,
    seed: int,
) -> None:
    batch = Batch(name, clipping, precision=precision, split=split, reduction=reduction, seed=seed)
    check_neighbours(batch, row, kind)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(net.NETWORKS)),
    kind=st.sampled_from(sorted(KINDS)),
    split=st.sampled_from([1, 2, 100]),
    row=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_bfloat16_autocast_respects_the_bound(
    clipping: ClippingName, name: str, kind: str, split: int, row: int, seed: int
) -> None:
    """The added unit stays in the batch on both sides, with weight zero on one.

    A batch of another size runs other kernels, whose 8-bit rounding of *every* unit may differ. That is a property
    of low precision, and not of clipping.
    """
    batch = Batch(name, clipping, precision="bf16", split=split, seed=seed)
    batch.make(row, kind)
    rows = list(range(len(batch.x)))
    with_unit, _ = batch.total(rows)
    without, _ = batch.total(rows, [float(i != row) for i in rows])
    assert all(bool(torch.isfinite(g).all()) for g in with_unit)
    assert difference(with_unit, without) <= batch.clipping.sensitivity * SLACK


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_a_single_unit_against_the_empty_batch(clipping: ClippingName, kind: str) -> None:
    """The empty neighbour adds exact zeros, whether it takes no pass at all or a stand-in of weight zero (trap T4)."""
    batch = Batch("cnn", clipping)
    batch.make(0, kind)
    alone, _ = batch.total([0])
    assert norm(alone) <= batch.clipping.sensitivity * SLACK
    empty, _ = batch.total([])
    stand_in, _ = batch.total([0], [0.0])
    assert norm(empty) == 0
    assert norm(stand_in) == 0


@pytest.mark.parametrize("kind", ["ordinary", "huge", "nan", "inf"])
@pytest.mark.parametrize("name", ["cnn", "tied", "tokens", "repeated", "generic_functional"])
def test_weight_zero_is_nothing(name: str, kind: str) -> None:
    batch = Batch(name)
    batch.make(2, kind)
    rows = list(range(len(batch.x)))
    without, _ = batch.total([i for i in rows if i != 2])
    masked, _ = batch.total(rows, [float(i != 2) for i in rows])
    assert difference(masked, without) <= 1e-5
    assert norm(batch.total(rows, [0.0] * len(rows))[0]) == 0


@pytest.mark.parametrize("weights", [[2.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [1.0], [[1.0, 1.0]]])
def test_weights_that_would_break_the_bound_are_refused(weights: list[float]) -> None:
    module = nn.Linear(3, 2)
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyConfigError, match=r"\[0, 1\]"),
    ):
        engine.backward(module(torch.randn(2, 3)).square().mean(), 2, torch.tensor(weights))


def test_unused_branch_and_per_layer_bounds() -> None:
    """An unused layer does not lend its share of the bound to the others, and the shares add up to C."""
    torch.manual_seed(0)
    module = net.Branches()
    x = 1e3 * torch.randn(1, 6)
    sums = []
    for module.use_second in (False, True):
        with GradientEngine(module, Clipping(1.0, "per_layer"), noise_multiplier=0.0, expected_batch_size=1) as engine:
            engine.backward(module(x).square().sum(), 1)
            sums.append(norm(engine.clipped_sum()))
    assert sums[0] == pytest.approx(math.sqrt(1 / 2), rel=1e-5)
    assert sums[1] == pytest.approx(1.0, rel=1e-5)


# --- general units ----------------------------------------------------------------------------------------------------


def ragged_total(module: nn.Module, x: Tensor, rows: Tensor, units: int) -> list[Tensor]:
    with GradientEngine(module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1) as engine:
        per_row = module(x).flatten(1).square().sum(1)
        engine.backward(per_row.new_zeros(units).index_add(0, rows, per_row).mean(), UnitMap(units, rows))
        return engine.clipped_sum()


class Logarithm(nn.Module):
    """A leaf that is undefined at zero: padding with zeros would turn one unit's row count into another's NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().log() * self.scale


@settings(max_examples=40)
@given(
    name=st.sampled_from(["mlp", "cnn", "generic_functional", "layer_norm", "group_norm", "tokens", "logarithm"]),
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    extra=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_a_unit_of_any_number_of_rows_moves_the_sum_by_at_most_the_bound(
    name: str, kind: str, sizes: list[int], extra: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module, x = (Logarithm(), torch.randn(4, 6)) if name == "logarithm" else BUILDERS[name]()
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rows = torch.cat([rows, torch.full((extra,), len(sizes))])[torch.randperm(sum(sizes) + extra)]
    x = torch.randn(len(rows), *x.shape[1:])
    new = rows == len(sizes)
    x[new] = KINDS[kind](x[new])
    with_unit = ragged_total(module, x, rows, len(sizes) + 1)
    without = ragged_total(module, x[~new], rows[~new], len(sizes))
    assert difference(with_unit, without) <= 0.5 * SLACK


# --- attacks on the arithmetic ----------------------------------------------------------------------------------------


def linear_total(module: nn.Module, x: Tensor, grad: Tensor, bound: float = 1.0) -> list[Tensor]:
    """The clipped sum of a loss whose gradient at the module's output is exactly `grad`, unit by unit."""
    with GradientEngine(
        module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, loss_reduction="sum"
    ) as engine:
        engine.backward((module(x) * grad).sum(), len(x))
        return engine.clipped_sum()


def attack(module: nn.Module, x: Tensor, grad: Tensor, bound: float = 1.0) -> float:
    """How far the last unit of the batch moves the sum."""
    return difference(linear_total(module, x, grad, bound), linear_total(module, x[:-1], grad[:-1], bound)) / bound


def test_a_token_that_cancels_itself_does_not_round_the_others_away() -> None:
    """+1e15 and -1e15 in one table row: summed in turn, they push every other unit's digits out of the float."""
    torch.manual_seed(0)
    x, grad = torch.zeros(20, 2, dtype=torch.int64), torch.randn(20, 2, 3)
    grad[-1, 0], grad[-1, 1] = 1e15, -1e15
    assert attack(nn.Embedding(5, 3), x, grad) <= 1e-4


@pytest.mark.parametrize("scale", [1e5, 1e9, 1e13])
@pytest.mark.parametrize("residual", [0.0, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("length", [2, 16, 200])
def test_positions_that_cancel_do_not_round_the_others_away(
    length: int, width: int, residual: float, scale: float
) -> None:
    torch.manual_seed(0)
    module = nn.Linear(width, width, bias=False)
    x, grad = torch.randn(9, length, width), torch.randn(9, length, width) / width
    x[-1] = torch.randn(width)
    grad[-1], direction = 0, torch.randn(width)
    grad[-1, 0], grad[-1, -1] = scale * direction, -scale * (1 + residual) * direction
    assert attack(module, x, grad) <= SLACK


@pytest.mark.parametrize("scale", [1e5, 1e9])
def test_patches_that_cancel_do_not_round_the_others_away(scale: float) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3, bias=False)
    x, grad = torch.randn(9, 3, 8, 8), torch.randn(9, 4, 6, 6)
    x[-1], grad[-1] = 1.0, 0.0
    grad[-1, :, 0, 0], grad[-1, :, -1, -1] = scale, -scale * (1 + 1e-6)
    assert attack(module, x, grad) <= SLACK


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x[:, 0]), self.layer(x[:, 1])], 1)


@pytest.mark.parametrize(
    ("layer", "shape", "out"),
    [(nn.Conv2d(2, 2, 3), (2, 5, 5), (2, 3, 3)), (nn.Linear(4, 4), (4,), (4,)), (net.Functional(), (6,), (4,))],
)
@pytest.mark.parametrize("scale", [1e5, 1e12])
def test_uses_that_cancel_do_not_round_the_others_away(
    layer: nn.Module, shape: tuple[int, ...], out: tuple[int, ...], scale: float
) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(9, 2, *shape), torch.randn(9, 2, *out)
    x[-1, 1] = x[-1, 0]
    grad[-1, 0] *= scale
    grad[-1, 1] = -grad[-1, 0]
    assert attack(Twice(layer), x, grad) <= SLACK


@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_huge_input_times_a_vanishing_gradient_is_seen(length: int) -> None:
    """1e18 times 2e-23: the square of the second underflows to zero, the product is far above the bound."""
    module = nn.Linear(64, 64, bias=False)
    x, grad = torch.full((2, length, 64), 1e18), torch.full((2, length, 64), 2e-23)
    assert attack(module, x, grad, bound=1e-4) <= SLACK


@pytest.mark.parametrize("value", [0.3, 1 / 3, 0.77, 1.1])
def test_the_norm_of_many_like_terms_is_not_rounded_down(value: float) -> None:
    """Ten million equal float32 squares: a few running sums would stagnate 1.6 % too low."""
    gradients = torch.full((1, 10**7), value)
    truth = 1e7 * float(gradients[0, 0].double()) ** 2
    assert float(row_squares(gradients)[0]) == pytest.approx(truth, rel=2e-5)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 10**6),
    length=st.sampled_from([1, 2, 3, 30, 3000]),
    width=st.sampled_from([1, 3, 24]),
    exponents=st.tuples(st.floats(-44, 38), st.floats(-44, 38), st.floats(0, 40)),
)
def test_no_outer_product_slips_past_its_bound(
    seed: int, length: int, width: int, exponents: tuple[float, float, float]
) -> None:
    """The coefficient from float32 arithmetic, applied to the exact gradient: any magnitudes, denormals included."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(2, 2, 1, length, 1, generator=generator, dtype=torch.float64) * exponents[2]
    a, b = (
        (torch.randn(2, 1, length, width, generator=generator, dtype=torch.float64) * 10 ** (e - s)).float()
        for e, s in zip(exponents, spread, strict=False)
    )
    truth = torch.einsum("ugtp,ugtd->upd", b.double(), a.double())
    for bound in (1e-3, 1.0, 1e3):
        norms = OuterProduct(a, b, torch.Size((width, width))).squared_norms()
        coefficients, finite = Clipping(bound).coefficients(norms[None])
        clipped = truth.flatten(1).norm(dim=1) * coefficients[0].double()
        assert bool((clipped[finite] <= bound * SLACK).all())
        assert bool((coefficients[0][~finite] == 0).all())


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 20), exponent=st.floats(-30, 25), rows=st.integers(1, 6))
def test_no_embedding_slips_past_its_bound(seed: int, length: int, exponent: float, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, rows, (3, length), generator=generator)
    b = (torch.randn(3, length, 4, generator=generator, dtype=torch.float64) * 10**exponent).float()
    table = EmbeddingRows(index, b, torch.Size((rows, 4)))
    truth = EmbeddingRows(index, b.double(), torch.Size((rows, 4))).per_unit(0, 3).flatten(1).norm(dim=1)
    coefficients, finite = Clipping(1.0).coefficients(table.squared_norms()[None])
    assert bool(((truth * coefficients[0])[finite] <= SLACK).all())


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan, 1e-30])
def test_bounds_that_bound_nothing_are_refused(bound: float) -> None:
    """A bound below 1e-8 lies where squares underflow: a norm of zero would let the whole gradient through."""
    with pytest.raises(PrivacyConfigError, match="bounds nothing"):
        Clipping(bound)


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_low_matmul_precision_does_not_reach_norms_and_sums(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning recommends set_float32_matmul_precision: TF32 or bfloat16 norms would bound another gradient."""
    seen: list[object] = []
    knobs = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
    honest = Clipping.coefficients

    def watch(self: Clipping, squares: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend(knob.fp32_precision for knob in knobs)
        return honest(self, squares)

    monkeypatch.setattr(Clipping, "coefficients", watch)
    default = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        before = [knob.fp32_precision for knob in knobs]
        Batch("mlp").total([0, 1])
        assert [knob.fp32_precision for knob in knobs] == before
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(default)
    assert seen
    assert set(seen) == {"ieee"}
