"""Hugging Face models as they are, built from a config: every sample's gradient is that of the sample alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, RowMemory, units_of_batch
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error

WORDS, PAD = 50, 1
# No dropout: two passes of one model must give the same loss. Sizes as small as the architectures allow.
BERT = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": PAD,
}  # fmt: skip
LLAMA = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": PAD,
}  # fmt: skip
GPT2 = {
    "vocab_size": WORDS, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
BART = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "dropout": 0.0, "pad_token_id": PAD, "forced_eos_token_id": 2,
}  # fmt: skip
IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def make(name: str, config: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).train()


def encoder_loss(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """A mean over each sample's own tokens, then over samples."""
    hidden, real = model(input_ids=ids, attention_mask=mask)[0], mask.unsqueeze(-1)
    pooled = (hidden * real).sum(1) / real.sum(1)
    return (pooled.sin().sum(1) + hidden[:, 0].square().sum(1)).mean()


def causal_loss(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return (losses.sum(1) / mask[:, 1:].sum(1)).mean()


def translation_loss(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids.flip(1)[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1).mean()


def image_loss(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    pixels = (ids[:, :1, None, None] + torch.arange(3 * 16 * 16).view(3, 16, 16) / 50).sin()
    return model(pixels)[0].flatten(1).sin().sum(1).mean()


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
MODELS: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "bert": (lambda: make("BertModel", "BertConfig", **BERT), encoder_loss),
    "roberta": (lambda: make("RobertaModel", "RobertaConfig", **BERT), encoder_loss),
    "albert": (lambda: make("AlbertModel", "AlbertConfig", **BERT, embedding_size=8), encoder_loss),
    "electra": (lambda: make("ElectraModel", "ElectraConfig", **BERT, embedding_size=8), encoder_loss),
    "distilbert": (
        lambda: make(
            "DistilBertModel", "DistilBertConfig", vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=24,
            max_position_embeddings=32, dropout=0.0, attention_dropout=0.0,
        ),
        encoder_loss,
    ),
    "gpt2": (lambda: make("GPT2LMHeadModel", "GPT2Config", **GPT2), causal_loss),
    "gpt_neox": (
        lambda: make("GPTNeoXForCausalLM", "GPTNeoXConfig", **{k: v for k, v in LLAMA.items() if "key" not in k}),
        causal_loss,
    ),
    "llama": (lambda: make("LlamaForCausalLM", "LlamaConfig", **LLAMA), causal_loss),
    "llama_tied": (lambda: make("LlamaForCausalLM", "LlamaConfig", **LLAMA, tie_word_embeddings=True), causal_loss),
    "mistral": (lambda: make("MistralForCausalLM", "MistralConfig", **LLAMA, sliding_window=4), causal_loss),
    "qwen2": (lambda: make("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), causal_loss),
    "gemma": (lambda: make("GemmaForCausalLM", "GemmaConfig", **LLAMA, head_dim=8), causal_loss),
    "bloom": (
        lambda: make("BloomForCausalLM", "BloomConfig", vocab_size=WORDS, hidden_size=16, n_layer=2, n_head=2),
        causal_loss,
    ),
    "opt": (
        lambda: make(
            "OPTForCausalLM", "OPTConfig", vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, ffn_dim=24,
            num_attention_heads=2, max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.0,
        ),
        causal_loss,
    ),
    "t5": (lambda: make("T5ForConditionalGeneration", "T5Config", **T5), translation_loss),
    "bart": (lambda: make("BartForConditionalGeneration", "BartConfig", **BART), translation_loss),
    "vit": (lambda: make("ViTModel", "ViTConfig", **IMAGE), image_loss),
    "deit": (lambda: make("DeiTModel", "DeiTConfig", **IMAGE), image_loss),
}  # fmt: skip


def batch(size: int, length: int) -> tuple[Tensor, Tensor]:
    """Random words, the samples of different lengths where there are several."""
    random = torch.Generator().manual_seed(10 * size + length)
    ids, mask = torch.randint(3, WORDS, (size, length), generator=random), torch.ones(size, length, dtype=torch.int64)
    for i in range(size):
        mask[i, length - i % 3 :] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def engine_sum(model: nn.Module, loss: Loss, ids: Tensor, mask: Tensor, bound: float, rows: RowMemory) -> list[Tensor]:
    units = units_of_batch((ids, mask), len(ids))
    with GradientEngine(model, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows) as engine:
        engine.expect(units)
        engine.backward(loss(model, ids, mask), units)
        return engine.clipped_sum()


def assert_matches(model: nn.Module, loss: Loss, sizes: list[tuple[int, int]]) -> None:
    parameters, rows = [p for p in model.parameters() if p.requires_grad], RowMemory()
    for size, length in sizes:
        ids, mask = batch(size, length)
        gradients = []
        for i in range(size):
            one = slice(i, i + 1)
            grads = torch.autograd.grad(loss(model, ids[one], mask[one]), parameters, allow_unused=True)
            gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
        bound = float(torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients]).median())
        truth = clipped_sum(gradients, bound, "flat", layer_numbers(model))
        assert relative_error(engine_sum(model, loss, ids, mask, bound, rows), truth) < 5e-5, (size, length)


@pytest.mark.parametrize("name", list(MODELS))
def test_model_matches_the_loop_over_samples(name: str) -> None:
    """Lengths that the batch sizes divide: position 0 to 7 of one table could be taken for two rows of four samples."""
    make_model, loss = MODELS[name]
    assert_matches(make_model(), loss, [(1, 5), (3, 7), (4, 8), (6, 6)])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    make_model, loss = MODELS[name]
    model = make_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    assert_matches(model, loss, [(1, 5), (4, 8)])


def test_frozen_base_with_a_trainable_head() -> None:
    model = MODELS["gpt2"][0]()
    model.transformer.requires_grad_(False)
    model.transformer.h[-1].requires_grad_(True)
    assert_matches(model, causal_loss, [(1, 5), (4, 8)])


def test_transposed_linear_layers_have_a_rule() -> None:
    from lightning_dp.gradients.rules import find_rule

    model = MODELS["gpt2"][0]()
    assert find_rule(model.transformer.h[0].mlp.c_fc) is not None


@pytest.mark.parametrize(
    "name, config, settings, reason",
    [
        ("DebertaV2Model", "DebertaV2Config", {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
         "rel_embeddings.weight that did not pass"),
        ("MambaForCausalLM", "MambaConfig", {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1},
         "conv1d.weight, .* that did not pass"),
    ],
    ids=["deberta", "mamba"],
)  # fmt: skip
def test_models_that_read_the_weights_of_others_are_refused(
    name: str, config: str, settings: dict[str, Any], reason: str
) -> None:
    model, (ids, mask) = make(name, config, **settings), batch(1, 5)
    with pytest.raises(PrivacyError, match=reason):
        engine_sum(model, encoder_loss, ids, mask, 1.0, RowMemory())
