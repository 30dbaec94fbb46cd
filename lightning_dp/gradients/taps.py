"""Taps on unmodified modules: record what each layer saw, and keep autograd from building its weight gradient.

While a module with parameters runs, its trainable parameters are replaced by detached stand-ins, and its output passes
through an identity function whose backward records the output gradient. Input gradients flow as always; weight
gradients are never computed. The true parameters thus receive *no* gradient from autograd, so any gradient that does
arrive on one came round the taps: that is a leak, and it is reported by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import BareParameter, Expression, MixedCall, Owner, leaves_of, map_tensors, tensors_in
from lightning_dp.gradients.rules import find_rule

__all__ = ("Record", "Taps")

COMPOSITES = (nn.MultiheadAttention,)
"""Modules that read their children's weights instead of calling the children: one call of the whole is recorded."""


@dataclass
class Record:
    """One tapped call and the gradient that came back to it.

    Attributes:
        name: the module's path (and the function, for a bare parameter): for messages.
        module: the module called, or the owner of the bare parameters.
        trainable: the parameters that took part: by their names in the module, or, for a bare parameter's call, by
            their names in the network.
        inputs: recorded ``(args, kwargs)``.
        outputs: the output tensors.
        grads: their gradients, ``None`` where none arrived.
        mixed: the call of a bare parameter, or ``None`` for a module call.
    """

    name: str
    module: nn.Module
    trainable: dict[str, nn.Parameter]
    inputs: Any
    outputs: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]
    mixed: MixedCall | None = None


class Taps:
    """Hooks on every module that owns parameters. Use :meth:`remove` (or the engine's context) to take them off.

    Args:
        root: the network.

    Attributes:
        records: filled while :attr:`recording` is true; one entry for each tapped call that a gradient reached.
        recording: set by the engine around the one backward pass whose gradient is to be privatised.
        generation: which logical step forward passes belong to now; the engine counts.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.records: list[Record] = []
        self.recording = False
        self.leaked: set[str] = set()
        self.generation = 0
        self._paused = False
        self._swapped: dict[nn.Module, list[dict[str, nn.Parameter]]] = {}
        self._handles: list[RemovableHandle] = []
        self._names = {module: name for name, module in root.named_modules()}
        self._parameters = dict(root.named_parameters(remove_duplicate=False))
        for module in self._names:
            if any(True for _ in module.parameters(recurse=False)):
                self._handles.append(module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
                self._handles.append(
                    module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True)
                )
        for name, parameter in root.named_parameters():
            if parameter.is_floating_point():
                self._watch(name, parameter)

    def _watch(self, name: str, parameter: nn.Parameter) -> None:
        def leaked(_: Tensor) -> None:
            if not self._paused:
                self.leaked.add(name)

        frozen = not parameter.requires_grad
        if frozen:  # the hook can only be placed on a tensor that requires a gradient; it may be unfrozen later
            parameter.requires_grad_(True)
        self._handles.append(parameter.register_post_accumulate_grad_hook(leaked))  # type: ignore[no-untyped-call]
        if frozen:
            parameter.requires_grad_(False)

    def untapped(self) -> list[str]:
        """Trainable parameters that were not there when the taps were placed."""
        known = set(self._parameters.values())
        return [name for name, p in self.root.named_parameters() if p.requires_grad and p not in known]

    def __deepcopy__(self, memo: dict[int, Any]) -> Taps:
        # The hooks of a copied (or pickled) network must not detach the copy's weights, nor carry records of private
        # data with them: a copy is an ordinary network.
        return _inert_taps()

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert_taps, ()

    def remove(self) -> None:
        """Takes every hook off; the modules are then exactly what they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, stack in self._swapped.items():
            for swapped in reversed(stack):
                for name, parameter in swapped.items():
                    _put(module, name, parameter)
        self._swapped.clear()
        self.clear()

    def clear(self) -> None:
        """Forgets all records, so that nothing of this pass can reach the next."""
        self.records.clear()
        self.leaked.clear()

    def paused(self) -> _Paused:
        """A context in which modules run as if untapped (to repeat a call, or for a plain reference)."""
        return _Paused(self)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._paused:
            return None
        swapped: dict[str, nn.Parameter] = {}
        self._swapped.setdefault(module, []).append(swapped)
        if not torch.is_grad_enabled():
            return None
        composite = isinstance(module, COMPOSITES)
        for name, parameter in module.named_parameters(recurse=composite, remove_duplicate=False):
            if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                swapped[name] = parameter
        owner = self._owner(module) if self._is_bare(module) else None
        prefix = f"{self._names[module]}." if self._names[module] else ""
        for name, parameter in swapped.items():
            stand_in = parameter.detach()
            if owner is not None:
                stand_in = BareParameter.wrap(stand_in, Expression(source=prefix + name), owner)
            _put(module, name, stand_in)
        if any(isinstance(t, BareParameter) for t in tensors_in((args, kwargs))):
            return map_tensors((args, kwargs), lambda t: t.tapped() if isinstance(t, BareParameter) else t)
        return None

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._paused or not self._swapped.get(module):
            return None
        swapped = self._swapped[module].pop()
        for name, parameter in swapped.items():
            _put(module, name, parameter)
        if output is None or not swapped or self._is_bare(module):
            return None
        self._refuse_output(module, output)
        tensors = [t for t in tensors_in(output) if t.is_floating_point()]
        if not tensors:
            return None
        inputs = map_tensors((args, kwargs), lambda t: t.detach())
        tapped = self._tap(Record(self._label(module), module, dict(swapped), inputs, (), ()), tensors)
        replaced = dict(zip(map(id, tensors), tapped, strict=True))
        return map_tensors(output, lambda t: replaced.get(id(t), t))

    def _refuse_output(self, module: nn.Module, output: Any) -> None:
        """What cannot be tapped would train nothing, silently: the layer's weights are detached."""
        for leaf in leaves_of(output):
            if is_dataclass(leaf) or (isinstance(leaf, Tensor) and leaf.is_complex()):
                kind = "a complex tensor" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise PrivacyError(
                    f"{self._label(module)} returns {kind}, whose gradient cannot be recorded, so its parameters would "
                    "get none. Return real tensors in tuples, lists or dicts (torch.view_as_real), or freeze it."
                )

    def _label(self, module: nn.Module) -> str:
        return f"{self._names[module] or 'the root module'} ({type(module).__name__})"

    def _is_bare(self, module: nn.Module) -> bool:
        """Parameters beside children are used by functions that no hook sees; those of a leaf, by its own forward."""
        if find_rule(module) is not None or isinstance(module, COMPOSITES):
            return False
        return any(True for _ in module.children())

    def _owner(self, module: nn.Module) -> Owner:
        def tap(call: MixedCall, result: Tensor) -> Tensor:
            name = f"{self._label(module)} ({', '.join(sorted(call.sources()))} in {call.func.__name__})"
            inputs = map_tensors((call.args, dict(call.kwargs)), lambda t: t.detach())
            call = MixedCall(call.func, inputs[0], inputs[1])
            trainable = {source: self._parameters[source] for source in call.sources()}
            return self._tap(Record(name, module, trainable, inputs, (), (), call), [result])[0]

        constants = frozenset(b.untyped_storage().data_ptr() for b in module.buffers(recurse=False) if b.numel())
        return Owner(tap, constants)

    def _tap(self, record: Record, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # The anchor gives the tap a gradient even where the network's input needs none (the first layer).
        anchor = torch.zeros((), device=outputs[0].device, requires_grad=True)
        return _Tap.apply(self, record, anchor, *outputs)  # type: ignore[no-any-return]


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Places a tensor where a parameter of that (dotted) name stands, without registering it as one."""
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._parameters[leaf] = value  # type: ignore[assignment]


def _inert_taps() -> Taps:
    taps = Taps(nn.Module())
    taps._paused = True
    return taps


class _Paused:
    def __init__(self, taps: Taps) -> None:
        self._taps, self._was = taps, taps._paused

    def __enter__(self) -> None:
        self._was, self._taps._paused = self._taps._paused, True

    def __exit__(self, *_: object) -> None:
        self._taps._paused = self._was


class _Tap(torch.autograd.Function):
    """Identity forward; the backward adds the record, completed by the gradients that arrived, to the taps."""

    @staticmethod
    def forward(ctx: Any, taps: Taps, record: Record, anchor: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.taps, ctx.record = taps, record
        # A detached tensor shares its version counter with the original. With detached weights autograd no longer
        # notices an input that is changed in place after use (x += f(x)); the counter does.
        ctx.kept = list(tensors_in(record.inputs))
        ctx.versions = [t._version for t in ctx.kept]
        ctx.generation, ctx.used = taps.generation, False
        if record.mixed is not None or find_rule(record.module) is None:
            # The generic rule compares with the output: a copy, since the network may change it in place.
            record.outputs = tuple(t.detach().clone() for t in outputs)
        return tuple(t.detach() for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        taps, record = ctx.taps, ctx.record
        if torch.is_grad_enabled() and not taps._paused:
            # Also outside the recorded pass (torch.autograd.grad in the loss): the weights are detached, so the second
            # derivative would lack its terms.
            raise PrivacyError(
                f"{record.name}: a backward pass with create_graph=True cannot be privatised; the second "
                "derivative mixes the units. Gradient penalties are not supported."
            )
        if taps.recording:
            if ctx.used or ctx.generation != taps.generation:
                raise PrivacyError(
                    f"the loss reaches back to an earlier pass through {record.name}: those rows belong to another "
                    "draw of units, and would be clipped as if they were this one's. Detach what is carried from step "
                    "to step (hidden states, memories), and compute the loss afresh in every step."
                )
            ctx.used = True
            if any(t._version != version for t, version in zip(ctx.kept, ctx.versions, strict=True)):
                raise PrivacyError(
                    f"the input of {record.name} was changed in place after the layer had used it, so its "
                    "gradient per unit would be wrong. Replace the in-place operation on that tensor "
                    "(x += ..., an inplace=True activation) by its ordinary form."
                )
            taps.records.append(replace(record, grads=grads))
        return (None, None, None, *grads)
