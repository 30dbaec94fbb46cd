"""Small modules, one for each thing that a network can do to the engine. Each builder returns (module, input)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[], tuple[nn.Module, Tensor]]


class Branches(nn.Module):
    """Uses its second branch only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.use_second = nn.Linear(6, 4), nn.Linear(6, 4), True

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + (self.second(x) if self.use_second else 0)


class Repeated(nn.Module):
    """One layer three times in a pass, on inputs of different meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(torch.tanh(self.layer(self.norm(x)))) + self.layer(x * 2))


class RepeatedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """A table that is also the output layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.table(x))))


class Tokens(nn.Module):
    """Class token, position embedding and layer scale, owned beside children; as vision transformers use them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 10, 8))
        self.scale = nn.Parameter(torch.randn(8))
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.position[:, : x.shape[1] + 1]
        x = x + self.scale * torch.tanh(self.mix(x))
        return self.head(x[:, 0])


class Queries(nn.Module):
    """Learned queries handed to a child, a table of biases looked up by a buffer, a log-scale."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 6))
        self.bias_table = nn.Parameter(torch.randn(9, 1))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("index", torch.randint(0, 9, (4, 5)))
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.queries.unsqueeze(0).expand(x.shape[0], -1, -1))
        bias = self.bias_table[self.index.flatten()].view(4, 5).unsqueeze(0)
        attention = (q @ self.k(x).mT * self.log_scale.exp() + bias).softmax(-1)
        return attention @ x


class Functional(nn.Module):
    """A leaf with its own arithmetic: no rule, the generic one must do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.a) * self.b + torch.einsum("bi,ij->bj", x**2, self.a)


class SubclassedLinear(nn.Linear):
    """Is an nn.Linear by name, and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.sigmoid(), self.bias)


class Windows(nn.Module):
    """Folds windows into the batch axis, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        folded = x.view(len(x), 4, 2, 3).flatten(0, 1)
        return self.norm(torch.tanh(self.layer(folded))).view(len(x), 8, 4)


class InPlaceResidual(nn.Module):
    """In-place activations on layer outputs: allowed, and common."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x), inplace=True)
        h = self.b(self.norm(h))
        h += x
        return h


class OpacusRecurrent(nn.Module):
    """Opacus' recurrent layers are made of linear cells, called once for each time step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import opacus.layers

        self.body, self.head = getattr(opacus.layers, kind)(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class OpacusAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        import opacus.layers

        self.body, self.head = opacus.layers.DPMultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x, x, x, need_weights=False)[0][:, 0])


class Recurrent(nn.Module):
    """PyTorch's own recurrent layers, time first, with the last states in the output."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(5, 6, 2, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.body(x.transpose(0, 1))
        return self.head(out[-1]) + (last[0] if isinstance(last, tuple) else last)[0, :, :3]


class EncoderDecoder(nn.Module):
    """PyTorch's own transformer, with self- and cross-attention and learned queries."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor")
            self.body = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=batch_first)
        self.queries, self.head = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.body.batch_first:
            return self.head(self.body(x, self.queries.expand(len(x), -1, -1)).flatten(1))
        queries = self.queries * torch.tanh(x[:, :3])
        return self.head(self.body(x.transpose(0, 1), queries.transpose(0, 1)).transpose(0, 1).flatten(1))


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.tanh(x))


def _bag(mode: str) -> Builder:
    return lambda: (nn.EmbeddingBag(7, 3, mode=mode, padding_idx=0), torch.randint(0, 7, (5, 6)))


def _linear(rank: int) -> Builder:
    return lambda: (nn.Linear(4, 3), torch.randn(6, *[2, 3, 2][: rank - 2], 4))


def _conv(kind: type[nn.Module], spatial: int, **options: object) -> Builder:
    size = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}[spatial]
    return lambda: (kind(4, 6, 3, **options), torch.randn(5, 4, *size))  # type: ignore[call-arg]


def _norm(make: Callable[[], nn.Module], *shape: int) -> Builder:
    def build() -> tuple[nn.Module, Tensor]:
        module = make()
        for p in module.parameters():
            nn.init.normal_(p)
        return nn.Sequential(module, nn.Tanh()), torch.randn(5, *shape)

    return build


LAYERS: dict[str, Builder] = {
    **{f"linear_{rank}d": _linear(rank) for rank in (2, 3, 4, 5)},
    "linear_long": lambda: (nn.Linear(3, 2), torch.randn(5, 300, 3)),
    "linear_wide": lambda: (nn.Linear(64, 48), torch.randn(5, 3, 64)),
    "linear_no_bias": lambda: (nn.Linear(4, 3, bias=False), torch.randn(6, 4)),
    "conv1d": _conv(nn.Conv1d, 1),
    "conv1d_strided": _conv(nn.Conv1d, 1, stride=2, padding=2, dilation=2, groups=2),
    "conv2d": _conv(nn.Conv2d, 2),
    "conv2d_strided": _conv(nn.Conv2d, 2, stride=(2, 1), padding=(1, 2)),
    "conv2d_dilated": _conv(nn.Conv2d, 2, dilation=(2, 1), padding=1),
    "conv2d_groups": _conv(nn.Conv2d, 2, groups=2, padding=1),
    "conv2d_one_pixel": lambda: (nn.Conv2d(4, 6, 1), torch.randn(5, 4, 1, 1)),  # as in squeeze-and-excitation
    "conv2d_one_pixel_groups": lambda: (nn.Conv2d(4, 4, 1, stride=2, groups=2), torch.randn(5, 4, 2, 2)),
    "conv2d_depthwise": lambda: (nn.Conv2d(4, 4, 3, groups=4), torch.randn(5, 4, 9, 8)),
    "conv2d_same": _conv(nn.Conv2d, 2, padding="same"),
    "conv2d_reflect": _conv(nn.Conv2d, 2, padding=1, padding_mode="reflect"),
    "conv2d_circular": _conv(nn.Conv2d, 2, padding=1, padding_mode="circular"),
    "conv2d_pointwise": lambda: (nn.Conv2d(4, 6, 1, stride=2), torch.randn(5, 4, 8, 8)),
    "conv2d_pointwise_of_one_pixel": lambda: (nn.Conv2d(4, 4, 1), torch.randn(5, 4, 1, 1)),
    "conv2d_pointwise_of_one_pixel_groups": lambda: (nn.Conv2d(4, 4, 1, groups=2), torch.randn(5, 4, 1, 1)),
    "conv2d_no_bias": _conv(nn.Conv2d, 2, bias=False),
    "conv3d": _conv(nn.Conv3d, 3),
    "conv3d_strided": _conv(nn.Conv3d, 3, stride=2, padding=1, groups=2),
    "layer_norm": _norm(lambda: nn.LayerNorm(6), 4, 6),
    "layer_norm_2d": _norm(lambda: nn.LayerNorm((4, 6)), 3, 4, 6),
    "group_norm": _norm(lambda: nn.GroupNorm(2, 4), 4, 5, 5),
    "group_norm_flat": _norm(lambda: nn.GroupNorm(2, 6), 6),
    "instance_norm1d": _norm(lambda: nn.InstanceNorm1d(3, affine=True), 3, 8),
    "instance_norm2d": _norm(lambda: nn.InstanceNorm2d(3, affine=True), 3, 5, 5),
    "instance_norm3d": _norm(lambda: nn.InstanceNorm3d(3, affine=True), 3, 4, 4, 4),
    "rms_norm": _norm(lambda: nn.RMSNorm(6), 4, 6),
    "embedding": lambda: (nn.Embedding(7, 3), torch.randint(0, 7, (5, 6))),
    "embedding_padding": lambda: (nn.Embedding(7, 3, padding_idx=0), torch.randint(0, 7, (5, 6))),
    "embedding_flat": lambda: (nn.Embedding(7, 3), torch.randint(0, 7, (5,))),
    "generic_functional": lambda: (Functional(), torch.randn(5, 6)),
    "generic_subclass": lambda: (SubclassedLinear(6, 4), torch.randn(5, 6)),
    "conv_transpose2d": lambda: (nn.ConvTranspose2d(3, 2, 3, stride=2), torch.randn(4, 3, 5, 5)),
    "conv_transpose1d": lambda: (
        nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        torch.randn(5, 4, 6),
    ),
    "prelu": lambda: (nn.Sequential(nn.PReLU(3), nn.Tanh()), torch.randn(5, 3, 4)),
    "bilinear": lambda: (Squared(), torch.randn(5, 4)),
    **{f"embedding_bag_{mode}": _bag(mode) for mode in ("sum", "mean", "max")},
}


def _cnn() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)]
    return nn.Sequential(*layers), torch.randn(6, 1, 12, 12)


def _mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(6, 3, 4)


def _weight_norm() -> tuple[nn.Module, Tensor]:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 6)


NETWORKS: dict[str, Builder] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "repeated": lambda: (Repeated(), torch.randn(5, 3, 5)),
    "repeated_conv": lambda: (RepeatedConv(), torch.randn(4, 2, 5, 5)),
    "tied": lambda: (Tied(), torch.randint(0, 11, (5, 4))),
    "tokens": lambda: (Tokens(), torch.randn(4, 1, 12, 12)),
    "queries": lambda: (Queries(), torch.randn(3, 5, 6)),
    "windows": lambda: (Windows(), torch.randn(5, 24)),
    "in_place": lambda: (InPlaceResidual(), torch.randn(5, 6)),
    "weight_norm": _weight_norm,
    "opacus_lstm": lambda: (OpacusRecurrent("DPLSTM"), torch.randn(4, 5, 5)),
    "opacus_gru": lambda: (OpacusRecurrent("DPGRU"), torch.randn(4, 5, 5)),
    "opacus_attention": lambda: (OpacusAttention(), torch.randn(4, 5, 8)),
    "torch_lstm": lambda: (Recurrent(nn.LSTM), torch.randn(4, 5, 5)),
    "torch_gru": lambda: (Recurrent(nn.GRU), torch.randn(4, 5, 5)),
    "torch_transformer": lambda: (EncoderDecoder(), torch.randn(4, 5, 8)),
    "torch_transformer_time_first": lambda: (EncoderDecoder(batch_first=False), torch.randn(4, 5, 8)),
}
