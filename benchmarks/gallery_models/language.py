"""Text and speech: language models by transformers, and what peft makes of them."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gallery_models.base import Parts, entry


@entry(
    "GPT-2 small",
    "language",
    "The head is the table of words itself: one parameter with two uses, summed before squaring. Its layers "
    "are `Conv1D`, an `addmm` with the weight transposed.",
    package="transformers",
    small={"batch": 2, "tokens": 3, "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 11},
)
def gpt2(batch: int = 2, tokens: int = 256, **config: Any) -> Parts:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**config)).eval()
    words = torch.randint(model.config.vocab_size, (batch, tokens))
    return model, {"input_ids": words, "use_cache": False}, {"outputs": lambda y: y.logits}


@entry(
    "BERT base",
    "language",
    "Rows of different length: the mask is an input, and a batch without padding takes another branch.",
    package="transformers",
    small={
        "batch": 2,
        "tokens": 4,
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "vocab_size": 11,
    },
)
def bert(batch: int = 4, tokens: int = 32, **config: Any) -> Parts:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(num_labels=3, **config)).eval()
    lengths = torch.randint(1, tokens + 1, (batch,))
    lengths[0] = tokens
    inputs = {
        "input_ids": torch.randint(model.config.vocab_size, (batch, tokens)),
        "attention_mask": (torch.arange(tokens) < lengths[:, None]).long(),
    }
    return model, inputs, {"outputs": lambda y: y.logits}


@entry(
    "Llama, rotary positions, grouped queries",
    "language",
    "Its norms compute in float32 whatever the model's dtype. Keys and values are repeated for the queries "
    "of a group; the last token alone is the state of a next-word study.",
    package="transformers",
    small={
        "batch": 2,
        "tokens": 3,
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 12,
        "vocab_size": 11,
    },
)
def llama(batch: int = 4, tokens: int = 64, **config: Any) -> Parts:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8000,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | config))).eval()
    words = torch.randint(model.config.vocab_size, (batch, tokens))
    return model, {"input_ids": words, "use_cache": False}, {"outputs": lambda y: y.logits[:, -1]}


@entry(
    "T5",
    "language",
    "Two inputs, encoder and decoder; biases of attention are read from a table by buckets of distance.",
    package="transformers",
    small={
        "batch": 2,
        "tokens": 3,
        "num_layers": 1,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_heads": 2,
        "vocab_size": 11,
    },
)
def t5(batch: int = 4, tokens: int = 32, **config: Any) -> Parts:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **config)).eval()
    words = torch.randint(model.config.vocab_size, (2, batch, tokens))
    inputs = {"input_ids": words[0], "decoder_input_ids": words[1], "use_cache": False}
    return model, inputs, {"outputs": lambda y: y.logits}


@entry(
    "Whisper",
    "language",
    "The encoder takes 30 seconds whatever the recording's length; positions are frozen sines. Few samples "
    "with large states: the trace needs more probes than elsewhere.",
    package="transformers",
    small={
        "batch": 1,
        "tokens": 2,
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 12,
        "decoder_ffn_dim": 12,
        "vocab_size": 7,
        "num_mel_bins": 4,
        "max_source_positions": 6,
    },
)
def whisper(batch: int = 2, tokens: int = 16, **config: Any) -> Parts:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"max_source_positions": 250, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    sizes |= {"decoder_start_token_id": 0, "begin_suppress_tokens": None, "suppress_tokens": None}
    model = WhisperForConditionalGeneration(WhisperConfig(**(sizes | config))).eval()
    known = model.config
    inputs = {
        "input_features": torch.randn(batch, known.num_mel_bins, 2 * known.max_source_positions),
        "decoder_input_ids": torch.randint(known.vocab_size, (batch, tokens)),
        "use_cache": False,
    }
    return model, inputs, {"outputs": lambda y: y.logits}


@entry(
    "Mixtral, a mixture of experts",
    "language",
    'Which tokens an expert sees depends on values: `experts_implementation="batched_mm"` or '
    '"grouped_mm" keeps shapes fixed, the loop over experts ("eager") does not.',
    package="transformers",
    small={
        "batch": 2,
        "tokens": 3,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 3,
        "vocab_size": 11,
    },
)
def mixtral(batch: int = 4, tokens: int = 32, **config: Any) -> Parts:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 2000,
        "experts_implementation": "batched_mm",
    }
    model = MixtralForCausalLM(MixtralConfig(**(sizes | config))).eval()
    words = torch.randint(model.config.vocab_size, (batch, tokens))
    return model, {"input_ids": words, "use_cache": False}, {"outputs": lambda y: y.logits[:, -1]}


@entry(
    "Mamba",
    "language",
    "A scan over time with a parameter A in every step: decays are exp(Δ A), tables of channels by states.",
    package="transformers",
    small={
        "batch": 2,
        "tokens": 3,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "state_size": 3,
        "vocab_size": 11,
        "time_step_rank": 2,
    },
)
def mamba(batch: int = 4, tokens: int = 32, **config: Any) -> Parts:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"num_hidden_layers": 4, "hidden_size": 128, "vocab_size": 2000}
    model = MambaForCausalLM(MambaConfig(**(sizes | config))).eval()
    words = torch.randint(model.config.vocab_size, (batch, tokens))
    return model, {"input_ids": words, "use_cache": False}, {"outputs": lambda y: y.logits[:, -1]}


@entry(
    "GPT-2 with LoRA",
    "language",
    "Only the low-rank updates are parameters; B starts at zero, so that A has no gradient before training.",
    package="peft",
    small={
        "batch": 2,
        "tokens": 3,
        "rank": 2,
        "n_layer": 2,
        "n_embd": 8,
        "n_head": 2,
        "vocab_size": 11,
    },
)
def lora(batch: int = 2, tokens: int = 32, rank: int = 8, **config: Any) -> Parts:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(**config))
    settings = LoraConfig(r=rank, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(base, settings).eval()
    words = torch.randint(base.config.vocab_size, (batch, tokens))
    return model, {"input_ids": words, "use_cache": False}, {"outputs": lambda y: y.logits[:, -1]}
