"""peft adapters on Hugging Face models: only the adapters train, and each sample's gradient is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft

from lightning_dp.gradients import Clipping, GradientEngine, RowMemory, units_of_batch
from lightning_dp.gradients.rules import find_rule
from tests.gradients.test_language_models import MODELS, assert_matches, batch, causal_loss

# peft warns of what it changes by itself, and of the config that a model without a name does not have.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

SIZES = [(1, 5), (3, 7), (4, 8)]


def adapted(base: str, **settings: Any) -> nn.Module:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, **{"lora_dropout": 0.0, **settings})
    model = peft.get_peft_model(MODELS[base][0](), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at zero, and a gradient that vanishes proves nothing
            nn.init.normal_(parameter, std=0.1)
    return model.train()


@pytest.mark.parametrize(
    "base, settings",
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True}),
        ("gpt2", {"target_modules": ["wte"]}),
        ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    ],
    ids=["gpt2", "rslora", "embedding", "llama", "dora", "modules_to_save", "bias"],
)
def test_lora_matches_the_loop_over_samples(base: str, settings: dict[str, Any]) -> None:
    model = adapted(base, **settings)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora" in name or "modules_to_save" in name for name in trainable)
    assert_matches(model, causal_loss, SIZES)


def test_an_encoder_with_lora() -> None:
    make_model, loss = MODELS["bert"]
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["query", "value"]))
    assert_matches(model, loss, SIZES)


def test_adapters_have_the_rule_of_linear_layers() -> None:
    model = adapted("llama", target_modules=["q_proj"])
    layers = [m for name, m in model.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))]
    assert layers
    assert all(find_rule(m) is not None for m in layers)


def test_dropout_of_the_adapter_is_outside_the_layers() -> None:
    """A private gradient under dropout is that of the masks that were drawn: with one sample it is autograd's own."""
    model, (ids, mask) = adapted("llama", target_modules=["q_proj"], lora_dropout=0.3), batch(1, 7)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(5)
    truth = torch.autograd.grad(causal_loss(model, ids, mask), parameters)
    units = units_of_batch((ids, mask), 1)
    with GradientEngine(
        model, Clipping(1e6), noise_multiplier=0.0, expected_batch_size=1, row_memory=RowMemory()
    ) as engine:
        torch.manual_seed(5)
        engine.expect(units)
        engine.backward(causal_loss(model, ids, mask), units)
        for one, other in zip(engine.clipped_sum(), truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def prompted_loss(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The logits of virtual tokens come first; no word is predicted from them here."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] : -1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return (losses.sum(1) / mask[:, 1:].sum(1)).mean()


OTHERS: dict[str, Callable[[], Any]] = {
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "o_proj"], r=4),
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj"], r=2),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_match_the_loop_over_samples(kind: str) -> None:
    torch.manual_seed(2)
    model = peft.get_peft_model(MODELS["llama"][0](), OTHERS[kind]()).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert_matches(model, prompted_loss, SIZES)
