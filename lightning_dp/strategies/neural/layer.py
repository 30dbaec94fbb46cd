"""Hooks on the released layer, each for the duration of one call and gone after it.

Within, compiled modules run as they were written: code that was compiled before runs round hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients.taps import uncompiled

__all__ = ("captured", "changed", "evaluating", "layer_of", "own_parameters", "replaced", "upstream_of")


class _Reached(BaseException):
    """Ends a forward pass at the layer. No Exception, so that no handler of the user's swallows it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def layer_of(module: nn.Module, name: str) -> nn.Module:
    """The module called ``name``. Raises PrivacyConfigError with the names that there are."""
    names = [found for found, _ in module.named_modules() if found]
    if name not in names:
        near = [found for found in names if name.split(".")[-1] in found] or names
        shown = ", ".join(near[:8]) + (" ..." if len(near) > 8 else "")
        raise PrivacyConfigError(
            f"layer={name!r} is no module of this network. Give the name of the module whose output is to be released, as in "
            f"module.named_modules(): {shown}; or layer=None to release the inputs themselves."
        )
    return module.get_submodule(name)


def captured(layer: nn.Module, run: Callable[[], Any], samples: int) -> Tensor:
    """The layer's output, ``(samples, ...)``, in a run that ends there: nothing downstream sees it.

    Raises:
        PrivacyConfigError: if the run does not reach the layer, or its output has no row for each sample.
    """

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output)

    handle = layer.register_forward_hook(stop)
    try:
        with uncompiled():
            run()
    except _Reached as reached:
        output = reached.output
    else:
        raise PrivacyConfigError(
            "training_step ended without calling the layer to be released, so there is nothing to release. Name a layer that "
            "every step calls as a module (self.net(x), not a function of its weights)."
        )
    finally:
        handle.remove()
    if isinstance(output, Tensor) and output.is_complex():
        raise PrivacyConfigError(
            f"the layer to be released returned complex numbers ({output.dtype}), and a release is of real ones: each needs a "
            "bound and noise on both of its parts. Release a layer behind it that returns torch.view_as_real(z), which keeps "
            "norms, or magnitudes (Magnitude)."
        )
    rows = isinstance(output, Tensor) and output.dim() >= 1 and len(output) == samples and output.is_floating_point()
    if not rows:
        found = (
            f"{output.dtype} of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        )
        raise PrivacyConfigError(
            f"the layer to be released returned {found} for {samples} samples: it must be one floating-point tensor with one "
            "row for each sample along its first axis, so that each sample's is clipped by itself. Release the layer before "
            "or after it, or flatten in between."
        )
    return output  # type: ignore[no-any-return]


@contextmanager
def replaced(layer: nn.Module, release: Tensor) -> Iterator[None]:
    """Within, the layer's output is ``release``, whatever it computes; afterwards it must have been called once.

    What it computes is thrown away, so it gets one row of stand-ins to compute on, and the layer costs next to nothing.
    """
    calls = 0

    def one_row(_: nn.Module, args: Any, kwargs: Any) -> Any:
        def first(value: Any) -> Any:
            rows = isinstance(value, Tensor) and value.dim() and len(value) == len(release)
            return value[:1] if rows else value

        return tuple(first(value) for value in args), {name: first(value) for name, value in kwargs.items()}

    def put(_: nn.Module, __: Any, output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise PrivacyError(
                "the released layer was called twice in one training step, and there is one release for each sample: what "
                "the second call should return is undecided. Call it once, and use its output twice."
            )
        return release.to(output) if isinstance(output, Tensor) else release

    handles = [layer.register_forward_pre_hook(one_row, with_kwargs=True), layer.register_forward_hook(put)]
    try:
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise PrivacyError(
            "training_step did not call the released layer, so it trained on stand-ins alone. Call it in every step."
        )


@contextmanager
def changed(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, the layer's output passes through ``change``."""

    def put(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return change(output)

    handle = layer.register_forward_hook(put)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()


def upstream_of(module: nn.Module, layer: nn.Module, run: Callable[[], Any], samples: int) -> list[str]:
    """Names of the modules that had run when the layer returned, itself included."""
    found: list[str] = []
    # The layer itself is listed here, and not by its own hook, which ends the run.
    handles = [
        child.register_forward_hook(lambda *_, name=name: found.append(name))
        for name, child in module.named_modules()
        if child is not layer
    ]
    try:
        captured(layer, run, samples)
    finally:
        for handle in handles:
            handle.remove()
    own = next(name for name, child in module.named_modules() if child is layer)
    return [*dict.fromkeys(found), own]


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, the modules are in evaluation mode: stand-ins must not reach running statistics."""
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def own_parameters(root: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the named modules own themselves, by their names in ``root``."""
    return [
        (f"{name}.{own}" if name else own, parameter)
        for name in names
        for own, parameter in root.get_submodule(name).named_parameters(recurse=False)
    ]
