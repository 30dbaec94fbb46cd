"""Taps on unmodified modules: record what each layer saw, and keep autograd from building its weight gradient.

While a module with parameters runs, its trainable parameters are replaced by detached stand-ins, and its output passes
through an identity function whose backward records the output gradient. Input gradients flow as always; weight
gradients are never computed. The true parameters thus receive *no* gradient from autograd, so any gradient that does
arrive on one came round the taps: that is a leak, and it is reported by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.ascent.shift import Shift, ShiftedCall
from lightning_dp.gradients.bare import (
    BareParameter,
    Expression,
    MixedCall,
    Owner,
    leaves_of,
    map_tensors,
    tensors_in,
)
from lightning_dp.gradients.borrowed import held_in_containers, readers
from lightning_dp.gradients.layouts import sequence_first
from lightning_dp.gradients.memory import nbytes
from lightning_dp.gradients.reals import carries_gradient
from lightning_dp.gradients.replay import RandomState
from lightning_dp.gradients.row_memory import RowMemory
from lightning_dp.gradients.shared import calls_a_module, module_expression, only_constants, unwrap
from lightning_dp.gradients.sites import Site, get, handed_over, put
from lightning_dp.gradients.tap import Kept, Record, Tap, is_plain
from lightning_dp.gradients.units import UnitMap

__all__ = ("Record", "Taps", "uncompiled")


class Taps:
    """Hooks on every module that owns parameters. Use :meth:`remove` (or the engine's context) to take them off.

    Args:
        root: the network.
        only: the parameters to follow; the others are left to autograd. ``None`` for all.

    Attributes:
        receive: set by the engine around the one backward pass whose gradient is to be privatised; it gets the record
            of each tapped call as soon as its gradient is there, the last layer's first.
        uses: how often each parameter was used in tapped calls since the last pass.
        sequence_first: modules whose calls keep the batch on axis 1.
        generation: which logical step forward passes belong to now; the engine counts.
        expected: the units of the forward pass that is coming, if they are known before it: layers that are called on what
            the whole batch shares can then be told from layers on samples, and followed.
        row_memory: what is known about the rows of each layer.
        shift: moves what layers return to what each unit's own parameters give, in the second pass of an ascent.
    """

    def __init__(self, root: nn.Module, only: frozenset[nn.Parameter] | None = None) -> None:
        self.root, self._only = root, only
        self.receive: Callable[[Record], None] | None = None
        self.uses: Counter[nn.Parameter] = Counter()
        self.leaked: set[str] = set()
        self.generation = 0
        self._paused = False
        self.row_memory = RowMemory()
        self.expected: UnitMap | None = None
        self.shift: Shift | None = None
        self._calls: Counter[str] = Counter()
        self._buffers: list[Tensor] = []
        self._constants: frozenset[int] = frozenset()
        self._swapped: dict[nn.Module, list[_Running]] = {}
        self._random_states: dict[nn.Module, RandomState] = {}
        self._recorded = 0
        self._handles: list[RemovableHandle] = []
        # An anchor gives the tap a gradient even where the network's input needs none (the first layer).
        self._anchors: dict[torch.device, Tensor] = {}
        self._names = {module: name for name, module in root.named_modules()}
        self.sequence_first = sequence_first(root)
        self.parameters = list(root.parameters())
        """The network's parameters when the taps were placed, each once."""
        self._known = set(map(id, self.parameters))
        self._sites = {module: Site.of(module, name) for module, name in self._names.items()}
        self._follows = any(site.bare for site in self._sites.values())
        self._parameters = dict(root.named_parameters(remove_duplicate=False))
        self._borrowed: dict[nn.Module, list[str]] = {}
        self._hooked: set[nn.Module] = set()
        for module in self._names:
            if any(True for _ in module.parameters(recurse=False)):
                self._hook(module)
        self.borrow(dict.fromkeys(held_in_containers(root), 1))
        for name, parameter in root.named_parameters():
            if carries_gradient(parameter) and (only is None or parameter in only):
                self._watch(name, parameter)

    def _hook(self, module: nn.Module) -> None:
        if module in self._hooked:
            return
        self._hooked.add(module)
        self._handles.append(module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
        self._handles.append(
            module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True)
        )

    def borrow(self, levels: Mapping[str, int]) -> None:
        """Follows parameters that a module around their owner reads itself, as if they were that module's own.

        Args:
            levels: qualified parameter names, and how many modules around the owner are followed.
        """
        for name, level in levels.items():
            for path in readers(self.root, name)[:level]:
                module = self.root.get_submodule(path)
                below = name.removeprefix(f"{path}.") if path else name
                if self._sites[module].bare and below not in self._borrowed.setdefault(module, []):
                    self._borrowed[module].append(below)
                    self._follows = True
                    self._hook(module)

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
        known = self._known
        return [name for name, p in self.root.named_parameters() if p.requires_grad and id(p) not in known]

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
            for running in reversed(stack):
                for name, parameter in running.parameters.items():
                    put(module, name, parameter)
        self._swapped.clear()
        self._random_states.clear()
        self.clear()

    def clear(self) -> None:
        """Forgets what this pass left, so that nothing of it can reach the next."""
        self.uses.clear()
        self.leaked.clear()
        self._recorded = 0
        self._calls.clear()

    def expect(self, units: UnitMap | None) -> None:
        """A forward pass on these units begins."""
        self.expected = units
        self._calls.clear()
        # Held, so that no other tensor can come to lie where a buffer was.
        self._buffers = [b for b in self.root.buffers() if b.numel()] if units is not None else []
        self._constants = frozenset(b.untyped_storage().data_ptr() for b in self._buffers)

    def recorded_bytes(self) -> int:
        """What the inputs recorded since the last pass take, with the parameters: less than a plain step keeps."""
        return self._recorded + nbytes(*self._parameters.values())

    @property
    def is_paused(self) -> bool:
        """Whether modules run as if untapped."""
        return self._paused

    def paused(self) -> _Paused:
        """A context in which modules run as if untapped (to repeat a call, or for a plain reference)."""
        return _Paused(self)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Compiling is for validation: a private step runs uncompiled, and one that does not is stopped, as it leaks.
        if self._paused or torch.compiler.is_compiling():
            return None
        running = _Running()
        swapped = running.parameters
        self._swapped.setdefault(module, []).append(running)
        if not torch.is_grad_enabled():
            return None
        site = self._site(module)
        if site.composite:
            parameters = dict(module.named_parameters(remove_duplicate=False))
        else:
            parameters = module._parameters  # type: ignore[assignment]
        if module in self._borrowed:
            parameters = {**parameters, **{name: get(module, name) for name in self._borrowed[module]}}
        for name, parameter in parameters.items():
            if isinstance(parameter, BareParameter):  # put there by a module around this one that reads it, too
                running.before[name], parameter = parameter, self._parameters[site.prefix + name]
            followed = self._only is None or parameter in self._only
            if parameter is not None and parameter.requires_grad and followed:  # stand-ins, of an outer call, do not
                swapped[name] = parameter
        if swapped and site.random is not None and site.random(module):
            self._random_states[module] = RandomState.capture(next(iter(swapped.values())).device)
        owner = self._owner(module) if site.bare else None
        for name, parameter in swapped.items():
            stand_in = parameter.detach()
            if owner is not None:
                stand_in = BareParameter.wrap(stand_in, Expression(source=site.prefix + name), owner)
            put(module, name, stand_in)
        if self._follows and any(isinstance(t, BareParameter) for t in tensors_in((args, kwargs))):
            inputs = handed_over(module, args, kwargs, self._keeps)
            if not site.bare and only_constants(inputs, self._constants):
                inputs, running.expressions = unwrap(inputs)
            return inputs
        return None

    def _keeps(self, tensor: BareParameter) -> bool:
        """Whether a followed tensor that enters another module has no batch axis, so that it is not tapped there."""
        return self.expected is not None and calls_a_module(tensor.expression)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._paused or torch.compiler.is_compiling() or not self._swapped.get(module):
            return None
        running, random_state = self._swapped[module].pop(), self._random_states.pop(module, None)
        swapped = running.parameters
        for name, parameter in swapped.items():
            put(module, name, running.before.get(name, parameter))
        site = self._site(module)
        if output is None or not (swapped or running.expressions) or site.bare:
            return None
        if type(output) is Tensor and carries_gradient(output):
            tensors = [output]
        else:
            self._refuse_output(module, output)
            tensors = [t for t in tensors_in(output) if carries_gradient(t)]
        if not tensors:
            return None
        call = self._next_call(site.label)
        plain = is_plain(args, kwargs)  # most calls: without a walk through nested containers
        inputs: Any = (args, kwargs)
        if not plain:
            inputs = map_tensors(inputs, lambda t: t.plain() if isinstance(t, BareParameter) else t)
        if self._is_shared(module, inputs, running, output, (site.label, call)):
            self._follows = True
            followed = module_expression(module, site.prefix, swapped, inputs, running.expressions)
            return BareParameter.wrap(output, followed, self._owner(module))
        rule = site.rule
        if not site.complex_too and any(t.is_complex() for t in (*tensors, *swapped.values())):
            rule = None  # which it was not written for: without a conjugate it would give another gradient's norm
        results: Sequence[Tensor] = tensors
        recorded = True
        if self.shift is not None:
            results, recorded = self.shift.of_layer(
                ShiftedCall(
                    site.label, call, module, inputs, tensors, swapped, rule, site.rows, random_state,
                    module in self.sequence_first,
                )
            )  # fmt: skip
        if recorded:
            inputs = ((args[0].detach(),), {}) if plain else map_tensors(inputs, lambda t: t.detach())
            record = Record(site.label, module, swapped, inputs, (), (), rule, None, site.rows, random_state, call)
            # A shifted layer's output is that of other parameters.
            if site.keeps_output and self.shift is None and site.keeps_output(results[0]):
                record.kept = []
            results = self._tap(record, results)
        if tensors[0] is output:
            return results[0]
        replaced = dict(zip(map(id, tensors), results, strict=True))
        return map_tensors(output, lambda t: replaced.get(id(t), t))

    def _is_shared(self, module: nn.Module, inputs: Any, running: _Running, output: Any, call: tuple[str, int]) -> bool:
        """Whether a layer was called on what the whole batch shares, so that its output has no batch axis."""
        if running.expressions:
            if isinstance(output, Tensor):
                return True
            raise PrivacyError(
                f"{call[0]} is called on parameters alone and returns several tensors, which cannot be followed to where "
                "they meet the samples. Let it return one tensor, expand its input to one row per sample first, or freeze it."
            )
        if self.expected is None or not isinstance(output, Tensor) or output.dim() == 0 or output.requires_grad:
            return False
        if only_constants(inputs, self._constants):
            return True
        if not isinstance(module, nn.Embedding):
            return False
        self.row_memory.refuse_unknown(*call, output.shape[0], self.expected)
        return self.row_memory.is_shared(*call, output.shape[0], self.expected)

    def _next_call(self, name: str) -> int:
        self._calls[name] += 1
        return self._calls[name] - 1

    def _refuse_output(self, module: nn.Module, output: Any) -> None:
        """What cannot be tapped would train nothing, silently: the layer's weights are detached."""
        for leaf in leaves_of(output):
            if is_dataclass(leaf):
                raise PrivacyError(
                    f"{self._site(module).label} returns a {type(leaf).__name__}, whose gradient cannot be recorded, so its "
                    "parameters would get none. Return tensors in tuples, lists or dicts, or freeze it."
                )

    def _site(self, module: nn.Module) -> Site:
        site = self._sites[module]
        if site.kind is not type(module) or site.patched != ("forward" in vars(module)):
            site = self._sites[module] = Site.of(module, self._names[module])
        return site

    def _owner(self, module: nn.Module) -> Owner:
        def tap(mixed: MixedCall, result: Tensor) -> Tensor | None:
            name = f"{self._site(module).label} ({', '.join(sorted(mixed.sources()))} in {mixed.func.__name__})"
            call = self._next_call(name)
            free = not result.requires_grad and result.dim() > 0
            if free and self.expected and self.row_memory.is_shared(name, call, result.shape[0], self.expected):
                return None
            trainable = {source: self._parameters[source] for source in mixed.sources()}
            if self.shift is not None:
                return self.shift.of_function(name, call, mixed, result, trainable)
            inputs = map_tensors((mixed.args, dict(mixed.kwargs)), _plain)
            mixed = MixedCall(mixed.func, inputs[0], inputs[1])
            return self._tap(Record(name, module, trainable, inputs, (), (), None, mixed, call=call), [result])[0]

        own = frozenset(b.untyped_storage().data_ptr() for b in module.buffers(recurse=False) if b.numel())
        return Owner(tap, own | self._constants)

    def _tap(self, record: Record, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for parameter in record.trainable.values():
            self.uses[parameter] += 1
        plain = record.mixed is None and is_plain(*record.inputs)
        self._recorded += nbytes(record.inputs[0][0]) if plain else nbytes(*tensors_in(record.inputs))
        device = outputs[0].device
        if device not in self._anchors:
            self._anchors[device] = torch.zeros((), device=device, requires_grad=True)
        tapped: tuple[Tensor, ...] = Tap.apply(self, record, self._anchors[device], *outputs)
        return tapped if record.kept is None else (Kept.apply(record.kept, tapped[0]),)


def uncompiled() -> AbstractContextManager[None]:
    """A context in which ``torch.compile`` is as if it were not there, for forward passes that must meet the taps.

    Code compiled before the hooks were placed runs round them (by default no guard looks at hooks), and code compiled with them
    falls to pieces at every layer.
    """
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _inert_taps() -> Taps:
    taps = Taps(nn.Module())
    taps._paused = True
    return taps


@dataclass
class _Running:
    """A module whose forward pass is under way."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    before: dict[str, BareParameter] = field(default_factory=dict)
    expressions: dict[int, Expression] = field(default_factory=dict)


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.plain() if isinstance(tensor, BareParameter) else tensor).detach()


class _Paused:
    def __init__(self, taps: Taps) -> None:
        self._taps, self._was = taps, taps._paused

    def __enter__(self) -> None:
        self._was, self._taps._paused = self._taps._paused, True

    def __exit__(self, *_: object) -> None:
        self._taps._paused = self._was
