"""What the engine made of each layer in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import RowMemory, UnitMap
from lightning_dp.gradients.backward import BackwardPass
from lightning_dp.gradients.bare import Expression
from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.contributions.product_sum import ProductSum
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.precision import arithmetic
from lightning_dp.gradients.shared import calls_a_module
from lightning_dp.gradients.taps import Record, Taps
from lightning_dp.inspection.report import InspectionRow, Problem, Way

__all__ = ("Observed", "layer_rows", "observe")


@dataclass(frozen=True)
class Observed:
    """One use of one parameter.

    Attributes:
        parameter: its qualified name.
        way: how its gradients per unit are had.
        contribution: what the rule made of it; ``None`` if it was refused.
    """

    parameter: str
    way: Way
    contribution: Contribution | None


def observe(
    model: nn.Module, loss: Callable[[], Tensor], units: UnitMap, row_memory: RowMemory
) -> tuple[list[Observed], list[Problem]]:
    """One tapped step: every use of every trainable parameter, and what went wrong on the way.

    Args:
        model: is hooked, and unhooked again.
        loss: runs the forward pass.
        units: whose the rows in it are.
        row_memory: what earlier passes told about the rows of each layer.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    taps, records = Taps(model), list[Record]()
    taps.row_memory = row_memory
    taps.borrow(row_memory.borrowed)
    taps.expect(units)
    try:
        try:
            value = loss()
            taps.receive = records.append
            value.backward()  # type: ignore[no-untyped-call]
        except (PrivacyError, PrivacyConfigError) as error:
            return [], [Problem("layer", str(error))]
        except Exception as error:  # the user's own code
            return [], [Problem("forward", f"the step failed: {type(error).__name__}: {error}")]
        finally:
            taps.receive = None
        problems = [Problem("leak", _leak(taps.leaked))] if taps.leaked else []
        observed, refused = [], dict[str, str]()
        for record in records:
            try:
                found: Mapping[nn.Parameter, Contribution] | None = _contributions(taps, record, units)
            except Exception as error:
                found = None
                if not isinstance(record.module, _BatchNorm):  # the table of refusals names it, with the cure
                    refused[str(error)] = "layer"
            way: Way = _way(record) if found is not None else "refused"
            for parameter in record.trainable.values():
                observed.append(Observed(names[parameter], way, None if found is None else found.get(parameter)))
        return observed, problems + [Problem(name, message) for message, name in refused.items()]
    finally:
        taps.remove()
        for parameter in names:
            parameter.grad = None


def layer_rows(model: nn.Module, observed: Sequence[Observed]) -> tuple[InspectionRow, ...]:
    """A row for each module that owns parameters; a parameter in several places belongs to the first."""
    uses: dict[str, list[Observed]] = {}
    for one in observed:
        uses.setdefault(one.parameter, []).append(one)
    rows, counted = [], set[nn.Parameter]()
    for path, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if p not in counted}
        if own:
            counted.update(own.values())
            prefix = f"{path}." if path else ""
            rows.append(_row(path, module, own, {name: uses.get(prefix + name, []) for name in own}))
    return tuple(rows)


def _row(
    path: str, module: nn.Module, own: Mapping[str, nn.Parameter], uses: Mapping[str, Sequence[Observed]]
) -> InspectionRow:
    kind, total = type(module).__name__, sum(p.numel() for p in own.values())
    trainable = sum(p.numel() for p in own.values() if p.requires_grad)
    if not trainable:
        return InspectionRow(path, kind, total, 0, "frozen")
    largest = max(
        (name for name in own if own[name].requires_grad), key=lambda name: (bool(uses[name]), own[name].numel())
    )
    seen = uses[largest]
    if not seen:
        return InspectionRow(path, kind, total, trainable, "not reached")
    way: Way = "refused" if any(one.way == "refused" for one in seen) else seen[0].way
    contributions = [one.contribution for one in seen if one.contribution is not None]
    route = "-" if not contributions else contributions[0].route
    return InspectionRow(path, kind, total, trainable, way, route, _cost(contributions), len(seen))


def _cost(contributions: Sequence[Contribution]) -> float | None:
    products = [c for c in contributions if isinstance(c, ProductSum)]
    if not products:
        return None
    spent = plain = 0.0
    for c in products:
        length, d, p = c.sizes
        plain += c.groups * length * d * p
        spent += c.groups * c.costs().get(c.route, length * d * p)
    return spent / plain


def _contributions(taps: Taps, record: Record, units: UnitMap) -> Mapping[nn.Parameter, Contribution]:
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in taps.root.parameters()) else torch.float32
    device = next(taps.root.parameters()).device
    memory, strict = Memory(None), arithmetic(device.type)
    memory.begin(taps.recorded_bytes())
    alone = BackwardPass(taps, units, dtype, memory, strict)
    with torch.no_grad(), strict():
        alone.receive(record)
        _, kept = alone.finish()
    return {parameter: contributions[0] for parameter, contributions in kept.items()}


def _way(record: Record) -> Way:
    if record.mixed is None:
        return "rule" if record.rule is not None else "fallback"
    mixed = Expression(func=record.mixed.func, args=record.mixed.args, kwargs=record.mixed.kwargs)
    return "shared" if calls_a_module(mixed) else "bare parameter"


def _leak(names: set[str]) -> str:
    return (
        f"autograd sent a gradient to {', '.join(sorted(names))} that did not pass through the layer that owns it, so it "
        "would be neither clipped nor noised: a weight used by a function outside its module, or a regulariser inside the "
        "loss (use the optimizer's weight_decay)."
    )
