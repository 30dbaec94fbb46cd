"""Convolutions in one to three dimensions, with any stride, padding, dilation and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.gradients.contributions import Contribution, OuterProduct, PerUnit
from lightning_dp.gradients.contributions.product_sum import ProductSum
from lightning_dp.gradients.contributions.routes import GRAM, UNFOLD, Route, route_costs
from lightning_dp.gradients.memory import CHUNK_BYTES, Memory
from lightning_dp.gradients.reals import real_rows
from lightning_dp.gradients.rules.pixel_gram import by_position, patch_gram, pixel_gram_cost
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("SIDE_BY_SIDE", "ConvGeometry", "ConvWeight", "conv_rule")

CHANNELS_LAST = 4  # inputs from which on patches are copied channels last: rows of a patch are then long enough
LARGE = (
    1 << 19
)  # elements of a unit's patches, from which on a call of the library for each unit costs less than they do
SIDE_BY_SIDE = 256  # positions, from which on the library differentiates several units at once faster than from patches
LIBRARY = 100  # what an element of a gradient from the library's kernel costs, in multiply-adds, besides handling it
BLOCK_OF_CHANNELS = 8  # the library's fast kernels go by blocks of channels

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvWeight(ProductSum):
    """A convolution's weight: a sum of outer products over patches, which are built a few units at a time.

    Args:
        x: padded inputs by unit ``(U, K, C_in, *spatial)``.
        grad: output gradients by unit ``(U, K, C_out, *out_spatial)``.
        shape: the weight's shape.
        geometry: how patches lie in the input.
    """

    def __init__(self, x: Tensor, grad: Tensor, shape: torch.Size, geometry: ConvGeometry) -> None:
        length = x.shape[1] * grad.shape[3:].numel()
        d, p = shape[1:].numel(), shape[0] // geometry.groups
        unfolds = geometry.kernel_elements > 1
        self.geometry, self.kernel_shape = geometry, shape
        self.units_a_call = _library_units(x, shape, (length, d, p), geometry)
        self._by_pixels = unfolds and (max(geometry.stride) == 1 or max(geometry.dilation) == 1)
        self._channels_last = geometry.groups == 1 and x.shape[2] >= CHANNELS_LAST and not self.units_a_call
        super().__init__(x, grad, shape, (length, d, p), unfolds)

    @override
    def costs(self) -> Mapping[Route, float]:
        length, d, p = self.sizes
        patches = UNFOLD * length * d if self.unfolds else 0
        gram = GRAM * self._pixel_gram_cost()[0] if self._by_pixels else GRAM * length**2 * d + patches
        build = LIBRARY * d * p if self.units_a_call else patches
        return route_costs(length, d, p, units=self.num_units * self.groups, gram=gram, build=build)

    @override
    def real(self) -> Contribution:
        if not (self.a.is_complex() or self.b.is_complex()):
            return self
        x, grad = real_rows(self.a, self.b, position=1, feature=2)
        return _PartsOfConvWeight(x, grad, self.shape, self.geometry)

    @override
    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        x, grad, groups = self.a[start:stop], self.b[start:stop], self.geometry.groups
        units, fold = x.shape[:2]
        b = grad.reshape(units, fold, groups, -1, self.sizes[0] // fold).permute(0, 2, 1, 4, 3).flatten(2, 3)
        x = x.flatten(0, 1)
        if self._channels_last:
            a = self.geometry.patches(x.movedim(1, -1), -1, self._memory).reshape(units, 1, self.sizes[0], -1)
        else:
            a = self.geometry.patches(x, 1, self._memory)
            a = a.view(units, fold, *a.shape[1:]).transpose(1, 2).flatten(2, 3)
        return a, b

    @override
    def gram_matrices(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if not self._by_pixels:
            return super().gram_matrices(start, stop)
        x, grad, geometry = self.a[start:stop], self.b[start:stop], self.geometry
        a = patch_gram(
            x, geometry.groups, grad.shape[3:], geometry.kernel, geometry.stride, geometry.dilation, geometry.padding
        )
        b = by_position(grad, geometry.groups)
        return a, torch.bmm(b.mT, b)

    @property
    @override
    def gram_elements(self) -> int:
        if not self._by_pixels:
            return super().gram_elements
        return 2 * max(self._pixel_gram_cost()[1], self.sizes[0] ** 2) * self.groups

    def _pixel_gram_cost(self) -> tuple[float, int]:
        _, rows, channels, *sizes = self.a.shape
        geometry, out = self.geometry, self.b.shape[3:]
        return pixel_gram_cost(rows, channels // geometry.groups, sizes, out, geometry.kernel, geometry.stride)

    @override
    def in_shape(self, gradients: Tensor) -> Tensor:
        if not self._channels_last:
            return gradients.view(gradients.shape[0], *self.kernel_shape)
        outputs, inputs, *kernel = self.kernel_shape
        return gradients.view(gradients.shape[0], outputs, *kernel, inputs).movedim(-1, 2)

    def row_order(self, weight: Tensor) -> Tensor:
        """A weight as ``(C_out, d)`` in the order in which gradients are held."""
        return (weight.movedim(1, -1) if self._channels_last else weight).flatten(1)

    @property
    @override
    def layout(self) -> object:
        return self._channels_last

    @override
    def sum_records(self, weights: Tensor, out: Tensor) -> None:
        scaled = self.b * weights.view(-1, *([1] * (self.b.dim() - 1)))
        out.add_(self.geometry.weight_gradient(self.a.flatten(0, 1), scaled.flatten(0, 1), self.kernel_shape))

    @override
    def most_energy(self) -> Tensor:
        # Each input element lies in at most as many patches as the kernel has elements.
        return super().most_energy() * self.geometry.kernel_elements

    @override
    def _built(self) -> Tensor:
        if self.units_a_call < self.num_units:
            return super()._built()
        return self.geometry.weight_gradients(self.a, self.b, self.kernel_shape).view(self.num_units, -1)

    @override
    def write(self, start: int, stop: int, out: Tensor) -> None:
        if not self.units_a_call:
            super().write(start, stop, out)
            return
        for first in range(start, stop, self.units_a_call):
            last = min(first + self.units_a_call, stop)
            gradients = self.geometry.weight_gradients(self.a[first:last], self.b[first:last], self.kernel_shape)
            out[first - start : last - start].view(gradients.shape).copy_(gradients)


def _library_units(x: Tensor, shape: torch.Size, sizes: tuple[int, int, int], geometry: ConvGeometry) -> int:
    """How many units' gradients one call of the library's own kernel should give, 0: build them from patches.

    On CPU that kernel needs no patches. Units side by side are groups of one convolution, as long as all their gradients
    stay in cache. (Measured; on GPUs patches and one batched product were faster.)
    """
    if x.device.type != "cpu" or geometry.kernel_elements == 1:
        return 0
    length, d, p = sizes
    in_blocks = x.shape[2] // geometry.groups % BLOCK_OF_CHANNELS == p % BLOCK_OF_CHANNELS == 0
    fitting = CHUNK_BYTES // (shape.numel() * x.element_size())
    fast = torch.backends.mkldnn.is_available() and x.dtype == torch.float32  # type: ignore[no-untyped-call]
    if fast and in_blocks and length >= SIDE_BY_SIDE and fitting >= 4:
        return fitting
    return 1 if length * d * geometry.groups >= LARGE else 0


class _PartsOfConvWeight(ConvWeight):
    """A complex convolution's weight as real coordinates: that of a convolution over real channels, two for each.

    Args:
        x: as in :class:`ConvWeight`, the two parts of each channel side by side.
        grad: likewise; real.
        shape: the complex weight's shape ``(C_out, C_in, *kernel)``.
        geometry: that of the complex convolution.
    """

    def __init__(self, x: Tensor, grad: Tensor, shape: torch.Size, geometry: ConvGeometry) -> None:
        super().__init__(x, grad, torch.Size((shape[0], 2 * shape[1], *shape[2:])), geometry)
        self.shape = torch.Size((*shape, 2))

    @override
    def in_shape(self, gradients: Tensor) -> Tensor:
        return self._parts_last(super().in_shape(gradients))

    @override
    def sum_records(self, weights: Tensor, out: Tensor) -> None:
        total = out.new_zeros(self.kernel_shape)
        super().sum_records(weights, total)
        out.add_(self._parts_last(total.unsqueeze(0))[0])

    def _parts_last(self, gradients: Tensor) -> Tensor:
        """From ``(S, C_out, 2 C_in, *kernel)`` to ``(S, C_out, C_in, *kernel, 2)``."""
        parts = gradients.view(*gradients.shape[:2], -1, 2, *gradients.shape[3:])
        return parts.movedim(3, -1)


class ConvGeometry:
    """Stride, dilation, padding and groups of one convolution, with its padding mode resolved to plain padding."""

    def __init__(self, module: Conv) -> None:
        self.stride, self.dilation, self.groups = tuple(module.stride), tuple(module.dilation), module.groups
        self.kernel = tuple(module.kernel_size)
        self.kernel_elements = int(torch.Size(self.kernel).numel())
        self.padding = [0] * len(self.kernel)
        self._before: list[int] | None = None
        self._mode = "constant"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            self._before = list(module._reversed_padding_repeated_twice)
            self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        else:
            self.padding = [int(p) for p in module.padding]

    def pad(self, x: Tensor) -> Tensor:
        """Applies the padding that the convolution itself cannot express ('same', reflect, circular, ...)."""
        return x if self._before is None else F.pad(x, self._before, mode=self._mode)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of padded inputs ``(R, C, *spatial)`` with another weight."""
        convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        return convolve(x, weight, None, self.stride, tuple(self.padding), self.dilation, self.groups)

    def patches(self, x: Tensor, channels: int, memory: Memory | None = None) -> Tensor:
        """The patch that each output element sees: a strided view, and one copy.

        Measured about four times faster on CPU than ``torch.nn.functional.unfold``, and in any number of dimensions.

        Args:
            x: ``(R, C, *spatial)``, or ``(R, *spatial, C)`` with ``channels=-1``.
            channels: where the channels are: 1 or -1.
            memory: lends the space for the copy, until the next one.

        Returns:
            ``(R, G, L, C / G * k)``; or ``(R, L, k * C)`` with channels last, whose copy moves whole rows of a patch.
        """
        last = channels == -1
        sizes = x.shape[1:-1] if last else x.shape[2:]
        if any(self.padding):
            pads = [p for size in reversed(self.padding) for p in (size, size)]
            x = F.pad(x, [0, 0, *pads] if last else pads)
            sizes = x.shape[1:-1] if last else x.shape[2:]
        x = x.contiguous()
        if self.kernel_elements == 1 and all(s == 1 for s in self.stride):
            return x.flatten(1, -2) if last else x.view(x.shape[0], self.groups, -1, x[0, 0].numel()).mT
        out = [
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        ]
        strides = x.stride()[1:-1] if last else x.stride()[2:]
        within = [a * d for a, d in zip(strides, self.dilation, strict=True)]
        across = [a * s for a, s in zip(strides, self.stride, strict=True)]
        if last:
            view = x.as_strided(
                (x.shape[0], *out, *self.kernel, x.shape[-1]), (x.stride(0), *across, *within, x.stride(-1))
            )
            return _copied(view, memory).view(x.shape[0], torch.Size(out).numel(), -1)
        view = x.as_strided((*x.shape[:2], *self.kernel, *out), (*x.stride()[:2], *within, *across))
        return _copied(view, memory).view(x.shape[0], self.groups, -1, torch.Size(out).numel()).mT

    def weight_gradient(self, x: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
        """The weight gradient summed over all rows, by the library's own kernel."""
        return self.weight_gradients(x.unsqueeze(0), grad.unsqueeze(0), shape)[0]

    def weight_gradients(self, x: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
        """The weight gradients of several units, each summed over its rows, by one call of the library's own kernel.

        Units lie side by side as groups of channels.

        Args:
            x: padded inputs ``(S, K, C_in, *spatial)``.
            grad: output gradients ``(S, K, C_out, *out_spatial)``.
            shape: the weight's shape.

        Returns:
            ``(S, *shape)``.
        """
        units = x.shape[0]
        x, grad = (t.transpose(0, 1).flatten(1, 2) for t in (x, grad))
        weight = x.new_empty(1).expand(units * shape[0], *shape[1:])  # only its shape is read
        no_pad = [0] * len(self.kernel)
        result = torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, no_pad, units * self.groups,
            (False, True, False),
        )  # fmt: skip
        gradients: Tensor = result[1]
        return gradients.view(units, *shape)


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, complex_too=True)
def conv_rule(call: LayerCall) -> dict[str, Contribution]:
    """A convolution is a linear layer over patches, one position for each output element."""
    module, units, grad = call.module, call.units, call.grad
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    call.refuse_without_batch(grad.dim() == len(module.kernel_size) + 2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        geometry = ConvGeometry(module)
        x = units.by_unit(geometry.pad(call.x.conj_physical()), call.name)
        weight = ConvWeight(x, units.by_unit(grad, call.name), module.weight.shape, geometry)
        pointwise = weight.sizes[0] == 1 and geometry.kernel_elements == 1  # a linear layer in all but its axes
        found["weight"] = OuterProduct(*weight.columns(0, weight.num_units), weight.shape) if pointwise else weight
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.summed(grad.flatten(2).sum(2), call.name))
    return found


def _copied(view: Tensor, memory: Memory | None) -> Tensor:
    return view.contiguous() if memory is None else memory.scratch(view.shape, view).copy_(view)
