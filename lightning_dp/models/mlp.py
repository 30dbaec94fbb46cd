"""A multilayer perceptron that a YAML file can describe in one line."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_features

__all__ = ("GroupNormMLP", "TanhMLP")


class TanhMLP(nn.Module):
    """Linear layers with hyperbolic tangents between them, on flattened inputs.

    Bounded activations keep per-sample gradient norms from growing in training, so clipping distorts less
    (Papernot et al. 2021, arXiv 2007.14191).

    Args:
        widths: sizes of input, hidden layers and output, at least two.

    Shape:
        ``(N, ...)`` with ``widths[0]`` elements a sample -> ``(N, widths[-1])``.

    Raises:
        PrivacyConfigError: for fewer than two widths.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise PrivacyConfigError(
                f"TanhMLP needs the sizes of its input and its output at least, got {list(widths)}"
            )
        self.in_features = widths[0]
        layers: list[nn.Module] = [nn.Flatten()]
        for size_in, size_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(size_in, size_out), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        check_features(x, self.in_features, "TanhMLP", "widths[0]=")
        logits: Tensor = self.layers(x)
        return logits


class GroupNormMLP(nn.Module):
    """One hidden layer with group normalisation and ReLU, on flattened features.

    Group normalisation acts within one sample, so it keeps the samples' gradients apart, and it keeps their norms alike.

    Args:
        in_features: elements of a sample.
        hidden: width of the hidden layer, a multiple of ``groups``.
        out_features: number of outputs.
        groups: groups of the normalisation.

    Shape:
        ``(N, ...)`` with ``in_features`` elements a sample -> ``(N, out_features)``.
    """

    def __init__(self, in_features: int, hidden: int = 128, out_features: int = 10, groups: int = 8) -> None:
        super().__init__()
        self.in_features = in_features
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, hidden),
            nn.GroupNorm(groups, hidden),
            nn.ReLU(),
            nn.Linear(hidden, out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        check_features(x, self.in_features, "GroupNormMLP", "in_features=")
        logits: Tensor = self.layers(x)
        return logits
