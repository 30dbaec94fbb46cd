"""What every network for images asks of its input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("check_features", "check_images", "check_positive")


def check_images(images: Tensor, channels: int, smallest: int, network: str) -> None:
    """Refuses what a network cannot take, before a convolution deep inside it does.

    Args:
        images: should be ``(N, channels, H, W)``.
        channels: what the network was made for.
        smallest: the least height and width.
        network: its name, for the message.

    Raises:
        PrivacyConfigError: another number of axes or channels, or too small images.
    """
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise PrivacyConfigError(f"{network} got an input of shape {shape}; it takes images (N, {channels}, H, W).")
    if shape[1] != channels:
        raise PrivacyConfigError(
            f"{network} got images of {shape[1]} channels, of shape {shape}, and was made for {channels}: make it with "
            f"in_channels={shape[1]} (in_chans={shape[1]} in timm.create_model), or give images (N, {channels}, H, W)."
        )
    if min(shape[2:]) < smallest:
        raise PrivacyConfigError(
            f"{network} got images of {shape[2]} x {shape[3]} pixels; it halves them on the way and needs at least "
            f"{smallest} x {smallest}. Enlarge them (torch.nn.functional.interpolate)."
        )


def check_features(inputs: Tensor, expected: int, network: str, argument: str) -> None:
    """Refuses samples of another number of elements than a network on flattened inputs was made for.

    Args:
        inputs: should be ``(N, ...)`` with ``expected`` elements a sample.
        expected: what the network was made for.
        network: its name, for the message.
        argument: the argument that says it, likewise.

    Raises:
        PrivacyConfigError: another number.
    """
    found = inputs[0].numel() if len(inputs) else expected
    if found != expected:
        raise PrivacyConfigError(
            f"{network} got samples of {found} elements, of shape {tuple(inputs.shape[1:])}, and was made for {expected}: "
            f"make it with {argument}{found}."
        )


def check_positive(network: str, numbers: Mapping[str, float]) -> None:
    """Refuses sizes of nothing.

    Args:
        network: its name, for the message.
        numbers: sizes by the names of the arguments.

    Raises:
        PrivacyConfigError: one is not positive.
    """
    for name, number in numbers.items():
        if number <= 0:
            raise PrivacyConfigError(f"{network}({name}={number!r}): give a positive number.")
