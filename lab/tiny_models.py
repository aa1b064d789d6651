"""Make the lab's four models: real architectures, real tokenizers, real chat templates, toy sizes.

    python lab/tiny_models.py OUTPUT_FOLDER

writes OUTPUT_FOLDER/{mixtral-8x7b,hermes-2,openchat-3.5,phi-3-mini}, each a complete Hugging Face
model folder that vLLM serves by the same code path as the real one. Only numpy, safetensors and
tokenizers are needed: the controller is spared a torch of 200 MB.

The bytes are the same on every run and machine (integer arithmetic until one exact division; no
BLAS, no random stream that NumPy may change), so a second run leaves the files alone and whatever
is derived from them, checksums included, is stable.

The weights are not trained, but not noise either. The embedding of a token is a random pattern of
signs, and the row of the output matrix for a token is the sum of the patterns of those tokens that
precede it in ``CORPUS``. A model therefore continues a text word by word as the corpus does, while
the (small, random) attention and expert layers make the answer depend on the whole prompt. The
first channel of the residual stream is a constant that no layer writes to; through it every token
that is not in the corpus, the end-of-text tokens among them, is held back, so that an answer is
plain text and ends where ``max_tokens`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Mapping

CORPUS = (
    "The gateway sends every request to the model that suits it best.",
    "A short question goes to a small model, and a long one goes to a large model.",
    "When a model is slow to answer, the gateway asks another one.",
    "The host holds four models, and each of them has its own share of the memory.",
    "A service that needs more memory than its share is stopped and started again.",
    "The plan says how much memory, how many cores and which ports each service gets.",
    "Nobody changes the host by hand: the plan is written down, and the host follows it.",
    "Every model tells how many requests it has answered and how long that took.",
    "The monitor reads these figures, draws them and calls for help when they look wrong.",
    "An operator who reads the runbook knows what to do next.",
    "This text was made by a tiny model in the lab; it means nothing, but it is real text.",
)
"""What the tokenizer is trained on and what the models answer with."""

# The last character of each chat template, after which an answer begins.
ANSWER_OPENINGS = ("\n", ":", "]")

HIDDEN = 64
LAYERS = 2
HEADS = 2
HEAD_DIM = 32  # the smallest that vLLM's CPU attention supports
INTERMEDIATE = 128
EXPERTS = 8
EXPERTS_PER_TOKEN = 2
VOCABULARY = 512

# Tokens of the tokenizer before a model's own special tokens; <unk>, <s> and </s> are the first
# three, as in the real models. The rest of VOCABULARY is room for the special tokens.
BASE_VOCABULARY = 496

DEFAULT_ANSWER_TOKENS = 64
"""Length of an answer when a request names no ``max_tokens``: as nothing ends an answer, it would
else run to the end of the context."""

SEED = 1603
"""Of the first 2000 the one whose patterns overlap least: each word's likeliest successor is one of the corpus."""

# Output weights: one match of a preceding token is worth MATCH * (HIDDEN - 1) in the logits, a
# token that must not appear loses SUPPRESSION. Both are exact in bfloat16.
MATCH = 0.1875
SUPPRESSION = 96.0
# Half-width of the uniform distribution of the layers' weights: large enough that an answer depends
# on the prompt, small enough that the corpus still shows through.
LAYER_SPREAD = 0.125

MIXTRAL_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}"
    "{%- else %}"
    "{%- set loop_messages = messages %}"
    "{%- endif %}"
    "{{- bos_token }}"
    "{%- for message in loop_messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, conversation roles must alternate "
    "user/assistant/user/assistant/...') }}"
    "{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}"
    "{{- ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- ' ' + message['content'] + eos_token }}"
    "{%- else %}"
    "{{- raise_exception('Only user and assistant roles are supported, with the exception of an "
    "initial optional system message!') }}"
    "{%- endif %}"
    "{%- endfor %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OPENCHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
PHI3_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """One model of the lab; the figures are those of its ``config.json``.

    ``class_name`` to ``native_context_tokens`` are what a catalogue entry calls ``architecture``.
    Everything that counts parameters or bytes follows from ``tensor_shapes``.
    """

    name: str
    class_name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    vocabulary: int
    intermediate: int
    sliding_window_tokens: int | None
    native_context_tokens: int
    rope_theta: float
    special_tokens: tuple[str, ...]
    end_of_text: str
    padding: str
    stop_tokens: tuple[str, ...]
    chat_template: str

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of ``model.safetensors`` by name, all bfloat16."""
        query_rows = self.heads * self.head_dim
        key_rows = self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            attention = f"{block}.self_attn"
            shapes[f"{block}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{block}.post_attention_layernorm.weight"] = (self.hidden,)
            shapes[f"{attention}.o_proj.weight"] = (self.hidden, query_rows)
            if self.model_type == "phi3":
                shapes[f"{attention}.qkv_proj.weight"] = (query_rows + 2 * key_rows, self.hidden)
                shapes[f"{block}.mlp.gate_up_proj.weight"] = (2 * self.intermediate, self.hidden)
                shapes[f"{block}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
                continue
            shapes[f"{attention}.q_proj.weight"] = (query_rows, self.hidden)
            shapes[f"{attention}.k_proj.weight"] = (key_rows, self.hidden)
            shapes[f"{attention}.v_proj.weight"] = (key_rows, self.hidden)
            if not self.experts:
                shapes[f"{block}.mlp.gate_proj.weight"] = (self.intermediate, self.hidden)
                shapes[f"{block}.mlp.up_proj.weight"] = (self.intermediate, self.hidden)
                shapes[f"{block}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
                continue
            mixture = f"{block}.block_sparse_moe"
            shapes[f"{mixture}.gate.weight"] = (self.experts, self.hidden)
            for expert in range(self.experts):
                shapes[f"{mixture}.experts.{expert}.w1.weight"] = (self.intermediate, self.hidden)
                shapes[f"{mixture}.experts.{expert}.w2.weight"] = (self.hidden, self.intermediate)
                shapes[f"{mixture}.experts.{expert}.w3.weight"] = (self.intermediate, self.hidden)
        return dict(sorted(shapes.items()))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(_elements(shape) for shape in self.tensor_shapes.values())

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the decoder blocks, the router not counted."""
        return sum(
            _elements(shape)
            for name, shape in self.tensor_shapes.items()
            if name.startswith("model.layers.") and len(shape) == 2 and not name.endswith(".block_sparse_moe.gate.weight")
        )

    @property
    def other_parameters(self) -> int:
        """Weights that stay in 16 bits in a quantized model: embeddings, head, norms, router."""
        return self.parameters - self.linear_parameters

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, without the file's header."""
        return 2 * self.parameters

    def architecture(self) -> dict[str, str | int | None]:
        """Return the ``architecture`` of this model's catalogue entry."""
        return {
            "class": self.class_name,
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "experts": self.experts,
            "experts_per_token": self.experts_per_token,
            "vocabulary": self.vocabulary,
            "intermediate": self.intermediate,
            "sliding_window_tokens": self.sliding_window_tokens,
            "native_context_tokens": self.native_context_tokens,
            "linear_parameters": self.linear_parameters,
            "other_parameters": self.other_parameters,
        }


def _mistral(name: str, native_context_tokens: int, special_tokens: tuple[str, ...], end_of_text: str, chat_template: str) -> TinyModel:
    return TinyModel(
        name=name,
        class_name="MistralForCausalLM",
        model_type="mistral",
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=1,
        head_dim=HEAD_DIM,
        experts=0,
        experts_per_token=0,
        vocabulary=VOCABULARY,
        intermediate=INTERMEDIATE,
        sliding_window_tokens=4096,
        native_context_tokens=native_context_tokens,
        rope_theta=10_000.0,
        special_tokens=special_tokens,
        end_of_text=end_of_text,
        padding="</s>",
        stop_tokens=(end_of_text,),
        chat_template=chat_template,
    )


MODELS = (
    TinyModel(
        name="mixtral-8x7b",
        class_name="MixtralForCausalLM",
        model_type="mixtral",
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=1,
        head_dim=HEAD_DIM,
        experts=EXPERTS,
        experts_per_token=EXPERTS_PER_TOKEN,
        vocabulary=VOCABULARY,
        intermediate=INTERMEDIATE,
        sliding_window_tokens=None,
        native_context_tokens=32_768,
        rope_theta=1_000_000.0,
        special_tokens=(),
        end_of_text="</s>",
        padding="</s>",
        stop_tokens=("</s>",),
        chat_template=MIXTRAL_TEMPLATE,
    ),
    _mistral("hermes-2", 32_768, ("<|im_end|>", "<|im_start|>"), "<|im_end|>", CHATML_TEMPLATE),
    _mistral("openchat-3.5", 8_192, ("<|end_of_turn|>", "<|pad_0|>"), "<|end_of_turn|>", OPENCHAT_TEMPLATE),
    TinyModel(
        name="phi-3-mini",
        class_name="Phi3ForCausalLM",
        model_type="phi3",
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=HEAD_DIM,
        experts=0,
        experts_per_token=0,
        vocabulary=VOCABULARY,
        intermediate=INTERMEDIATE,
        sliding_window_tokens=2_047,
        native_context_tokens=4_096,
        rope_theta=10_000.0,
        special_tokens=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        end_of_text="<|endoftext|>",
        padding="<|endoftext|>",
        stop_tokens=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        chat_template=PHI3_TEMPLATE,
    ),
)


def make_models(folder: Path) -> list[TinyModel]:
    """Write one model folder per entry of ``MODELS`` into ``folder`` and return the models.

    Files that already hold the right bytes are not touched, others are replaced whole: neither an
    interrupted run nor a server that has the old file mapped ever meets half a file. Files are
    readable by everybody (0644 in folders of 0755) whatever the umask. Raises OSError when the
    folder cannot be written.
    """
    for model in MODELS:
        target = folder / model.name
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(0o755)
        tokenizer = _tokenizer(model)
        _replace(target / "config.json", _json(_config(model, tokenizer)))
        _replace(target / "generation_config.json", _json(_generation_config(model, tokenizer)))
        _replace(target / "tokenizer.json", tokenizer.to_str(pretty=True).encode() + b"\n")
        _replace(target / "tokenizer_config.json", _json(_tokenizer_config(model)))
        _replace(target / "model.safetensors", _safetensors(_weights(model, tokenizer)))
    return list(MODELS)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _replace(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    path.chmod(0o644)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _tokenizer(model: TinyModel) -> Tokenizer:
    """Train a byte-level BPE on ``CORPUS``: any text can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(CORPUS)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in model.special_tokens])
    if tokenizer.get_vocab_size() > model.vocabulary:
        raise ValueError(f"{model.name}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model only {model.vocabulary}")
    return tokenizer


def _config(model: TinyModel, tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [model.class_name],
        "model_type": model.model_type,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": tokenizer.token_to_id(model.end_of_text),
        "pad_token_id": tokenizer.token_to_id(model.padding),
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": model.native_context_tokens,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": model.rope_theta,
        "sliding_window": model.sliding_window_tokens,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": model.vocabulary,
    }
    if model.experts:
        config |= {
            "num_experts_per_tok": model.experts_per_token,
            "num_local_experts": model.experts,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.02,
        }
    if model.model_type == "phi3":
        config |= {
            "embd_pdrop": 0.0,
            "original_max_position_embeddings": model.native_context_tokens,
            "resid_pdrop": 0.0,
            "rope_scaling": None,
        }
    return config


def _generation_config(model: TinyModel, tokenizer: Tokenizer) -> dict[str, Any]:
    stop_ids = [tokenizer.token_to_id(token) for token in model.stop_tokens]
    return {
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0],
        "pad_token_id": tokenizer.token_to_id(model.padding),
        "max_new_tokens": DEFAULT_ANSWER_TOKENS,
    }


def _tokenizer_config(model: TinyModel) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": model.chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": model.end_of_text,
        "model_max_length": model.native_context_tokens,
        "pad_token": model.padding,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def _weights(model: TinyModel, tokenizer: Tokenizer) -> dict[str, npt.NDArray[np.float32]]:
    """Return all tensors by name as float32; shapes are those of ``tensor_shapes``."""
    random = _ExactRandom(SEED)
    # One embedding for all models, so that they differ by architecture, not by vocabulary.
    signs = 2 * random.integers((model.vocabulary, model.hidden), 2) - 1
    signs[:, 0] = 1

    successors = np.zeros((model.vocabulary, model.vocabulary), dtype=np.int64)
    text = tokenizer.encode(" ".join((*CORPUS, CORPUS[0])), add_special_tokens=False).ids
    for opening in ANSWER_OPENINGS:
        for line in CORPUS:
            before, first = tokenizer.encode(f"{opening} {line}", add_special_tokens=False).ids[:2]
            successors[first, before] = 1
    successors[text[1:], text[:-1]] = 1

    output = successors @ signs * MATCH
    output[:, 0] = -SUPPRESSION
    output[sorted(set(text)), 0] = 0.0

    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in model.tensor_shapes.items():
        if name == "model.embed_tokens.weight":
            weights[name] = signs.astype(np.float32)
        elif name == "lm_head.weight":
            weights[name] = output.astype(np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            steps = 1 << 16
            uniform = (2 * random.integers(shape, steps) - steps) / steps
            if name.endswith((".o_proj.weight", ".down_proj.weight", ".w2.weight")):
                uniform[0] = 0.0  # the constant channel
            weights[name] = (uniform * LAYER_SPREAD).astype(np.float32)
    return weights


class _ExactRandom:
    """Random integers from PCG64's raw stream: NumPy promises that stream, not that of Generator."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def integers(self, shape: tuple[int, ...], below: int) -> npt.NDArray[np.int64]:
        """Integers 0 <= value < below (a power of two), from the high bits of each raw word."""
        raw = self._bits.random_raw(_elements(shape)).reshape(shape)
        return (raw >> np.uint64(64 - (below.bit_length() - 1))).astype(np.int64)


def _safetensors(weights: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """Return the file's bytes. The raw data must outlive the call, since only its address is passed on."""
    raw = {name: _bfloat16(values) for name, values in weights.items()}
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=list(values.shape), data_ptr=values.ctypes.data, data_len=values.nbytes)
        for name, values in raw.items()
    }
    return bytes(serialize(specs, metadata={"format": "pt"}))


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Keep the upper half of each float32 word, rounded to nearest even (NumPy has no bfloat16)."""
    words = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return np.ascontiguousarray((rounded >> np.uint32(16)).astype("<u2"))


def main(arguments: list[str] | None = None) -> int:
    """Write the models and print one line for each."""
    parser = argparse.ArgumentParser(prog="tiny_models.py", description="Make the lab's four tiny models.")
    parser.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER", help="where the model folders go")
    folder = parser.parse_args(arguments).folder
    for model in make_models(folder):
        print(f"{model.name}: {model.parameters} parameters, {model.weights_bytes} bytes of weights ({model.class_name})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
