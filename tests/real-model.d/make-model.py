#!/usr/bin/env python3
"""Writes a tiny Llama model with random weights: make-model.py FOLDER

Two layers, 128 wide, 512 tokens, seeded, so every run writes the same bytes. It knows nothing: it
puts words in a row, never ends an answer by itself, and at temperature 0 repeats itself exactly.
That is what a test needs: real tokenizing, batching and streaming for a few megabytes of memory.

FOLDER gets tiny.gguf (llama.cpp) and the Hugging Face files (vLLM) of the same weights. Both formats
are written by hand below, so only Python itself is needed.
"""

import json
import os
import random
import struct
import sys
from array import array

SEED = 20260
WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT, VOCAB = 128, 2, 2, 1, 256, 8192, 512
HEAD = WIDTH // HEADS
EPSILON, ROPE = 1e-5, 10000.0
BOS, EOS, PAD = 0, 1, 2
SPECIAL = ["<|start|>", "<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|close|>"]
TEMPLATE = (
    "{{ '<|start|>' }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] or '') + '<|close|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The words the tokenizer learns, and so the words the model writes.
WORDS = """
a branch holds commits and a commit holds changes so a reviewer reads the merge request before it lands
the pipeline runs every job in order while a runner waits for work and reports what it found
return the value when the key exists otherwise raise an error that names the missing field
for each item in the list call the function then collect results into a table and print them
open close read write parse format count sort search filter group join split copy move delete
user project group issue label milestone token secret server client request answer queue stream model
north south river mountain forest garden window kitchen table lamp paper pencil summer winter morning evening
""".split()


def byte_letters():
    """The printable letter that byte-level tokenizers use for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {}, 256
    for byte in range(256):
        if byte in plain:
            letters[byte] = chr(byte)
        else:
            letters[byte], spare = chr(spare), spare + 1
    return letters


def learn_tokens():
    """Byte-pair merges over WORDS until the vocabulary is full: (tokens, merges)."""
    letters = byte_letters()
    tokens = SPECIAL + [letters[b] for b in range(256)]
    merges, space = [], letters[32]
    words = [[space, *word] for word in WORDS]
    while len(tokens) < VOCAB:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = [merge_in(word, best) for word in words]
    tokens += [f"<|unused{i}|>" for i in range(len(tokens), VOCAB)]
    return tokens, merges


def merge_in(word, pair):
    out, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def make_weights(tokens):
    """Tensors by their Hugging Face name, as (shape, floats)."""
    rng = random.Random(SEED)

    def noise(rows, columns, spread):
        return (rows, columns), array("f", (rng.gauss(0, spread) for _ in range(rows * columns)))

    ones = (WIDTH,), array("f", [1.0] * WIDTH)
    weights = {"model.embed_tokens.weight": noise(VOCAB, WIDTH, 1.0), "model.norm.weight": ones}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        weights |= {
            at + "self_attn.q_proj.weight": noise(HEADS * HEAD, WIDTH, 0.08),
            at + "self_attn.k_proj.weight": noise(KV_HEADS * HEAD, WIDTH, 0.08),
            at + "self_attn.v_proj.weight": noise(KV_HEADS * HEAD, WIDTH, 0.08),
            at + "self_attn.o_proj.weight": noise(WIDTH, HEADS * HEAD, 0.08),
            at + "mlp.gate_proj.weight": noise(INNER, WIDTH, 0.08),
            at + "mlp.up_proj.weight": noise(INNER, WIDTH, 0.08),
            at + "mlp.down_proj.weight": noise(WIDTH, INNER, 0.08),
            at + "input_layernorm.weight": ones,
            at + "post_attention_layernorm.weight": ones,
        }
    # Only whole words can be written: every other token keeps a row of zeros, so the text is
    # readable and no special token ends an answer by chance.
    shape, head = noise(VOCAB, WIDTH, 0.5)
    for i, token in enumerate(tokens):
        if token[0] != byte_letters()[32] or token[1:] not in WORDS:
            head[i * WIDTH : (i + 1) * WIDTH] = array("f", [0.0] * WIDTH)
    weights["lm_head.weight"] = shape, head
    return weights


def raw(values):
    if sys.byteorder == "big":
        values = array("f", values)
        values.byteswap()
    return values.tobytes()


def write_hugging_face(folder, tokens, merges, weights):
    def dump(name, value):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)

    dump("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": EPSILON,
        "rope_theta": ROPE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "dtype": "float32",
    })
    dump("generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})
    dump("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD], "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    })
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    dump("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, text in enumerate(SPECIAL)
        ],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SPECIAL[BOS], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": SPECIAL[BOS], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIAL[BOS]: {"id": SPECIAL[BOS], "ids": [BOS], "tokens": [SPECIAL[BOS]]}},
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges],
        },
    })
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, values) in weights.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + 4 * len(values)]}
        offset += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in weights.values():
            file.write(raw(values))


def interleave(values, heads):
    """Rows of a query or key matrix in the order llama.cpp rotates them in: pairs side by side."""
    out, per_head = array("f"), len(values) // heads // WIDTH
    for head in range(heads):
        for i in range(per_head // 2):
            for row in (i, i + per_head // 2):
                start = (head * per_head + row) * WIDTH
                out += values[start : start + WIDTH]
    return out


def write_gguf(path, tokens, merges, weights):
    u32, f32, boolean, string, sequence, i32 = 4, 6, 7, 8, 9, 5
    text = lambda value: struct.pack("<Q", len(value.encode())) + value.encode()
    entry = lambda key, kind, packed: text(key) + struct.pack("<I", kind) + packed
    number = lambda key, value: entry(key, u32, struct.pack("<I", value))
    strings = lambda key, values: entry(
        key, sequence, struct.pack("<IQ", string, len(values)) + b"".join(map(text, values)))
    normal, control, unused = 1, 3, 5
    kinds = [control if i < len(SPECIAL) else unused if t.startswith("<|unused") else normal for i, t in enumerate(tokens)]
    about = [
        entry("general.architecture", string, text("llama")),
        entry("general.name", string, text("tiny-random")),
        number("general.file_type", 0),
        number("llama.context_length", CONTEXT),
        number("llama.embedding_length", WIDTH),
        number("llama.block_count", LAYERS),
        number("llama.feed_forward_length", INNER),
        number("llama.attention.head_count", HEADS),
        number("llama.attention.head_count_kv", KV_HEADS),
        number("llama.attention.key_length", HEAD),
        number("llama.attention.value_length", HEAD),
        number("llama.rope.dimension_count", HEAD),
        number("llama.vocab_size", VOCAB),
        entry("llama.attention.layer_norm_rms_epsilon", f32, struct.pack("<f", EPSILON)),
        entry("llama.rope.freq_base", f32, struct.pack("<f", ROPE)),
        entry("tokenizer.ggml.model", string, text("gpt2")),
        entry("tokenizer.ggml.pre", string, text("gpt-2")),
        strings("tokenizer.ggml.tokens", tokens),
        strings("tokenizer.ggml.merges", [" ".join(pair) for pair in merges]),
        entry("tokenizer.ggml.token_type", sequence, struct.pack(f"<IQ{VOCAB}i", i32, VOCAB, *kinds)),
        number("tokenizer.ggml.bos_token_id", BOS),
        number("tokenizer.ggml.eos_token_id", EOS),
        number("tokenizer.ggml.padding_token_id", PAD),
        entry("tokenizer.ggml.add_bos_token", boolean, b"\x01"),
        entry("tokenizer.chat_template", string, text(TEMPLATE)),
    ]
    ours = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for layer in range(LAYERS):
        for long, short in parts.items():
            ours[f"model.layers.{layer}.{long}.weight"] = f"blk.{layer}.{short}.weight"
    listed, data = b"", b""
    for name, (shape, values) in weights.items():
        if "q_proj" in name or "k_proj" in name:
            values = interleave(values, HEADS if "q_proj" in name else KV_HEADS)
        listed += text(ours[name]) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, len(data))
        data += raw(values)
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(weights), len(about)) + b"".join(about) + listed
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % 32) + data)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    tokens, merges = learn_tokens()
    weights = make_weights(tokens)
    write_hugging_face(folder, tokens, merges, weights)
    write_gguf(os.path.join(folder, "tiny.gguf"), tokens, merges, weights)


main()
