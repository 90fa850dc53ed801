"""Train the built-in model: a small BitNet b1.58, ternary from the first step, on a CPU.

    python -m lutra.tools.train --stories tinystories_train.txt --heldout tinystories_heldout.txt \\
        --chitchat qna_chitchat_friendly.tsv --minutes 65 --work runs/builtin

The work directory then holds `log.txt`, `tokenizer.json`, `checkpoint.pt` (the same command resumes
from it) and `export/`, a Hugging Face directory that `transformers.BitNetForCausalLM` loads.

Quantization-aware training after "The Era of 1-bit LLMs" (arXiv 2402.17764) and its training notes:
every matrix is used as `T * m`, with `m = mean|W|` and `T = clamp(round(W / m), -1, 1)`; every
matrix input is rounded to int8 per token; gradients pass both roundings as if they were not there.
The layer is that of BitNet b1.58 2B4T (arXiv 2504.12285): squared-ReLU gate, a norm before every
matrix. Matrices learn by Muon (K. Jordan, 2024), everything else by AdamW.

Letters in shapes: B rows, T tokens of a row, D hidden size, F inner size of the MLP, V vocabulary,
H heads, G key/value heads, K head size, n = B * T.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import os
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from . import corpus
except ImportError as error:
    raise ImportError(f"training needs {error.name}: pip install lutra[train]") from None

BOS, EOS, END = (corpus.SPECIAL.index(token) for token in (corpus.BOS, corpus.EOS, corpus.END))

# ---------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; field names as in a Hugging Face config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} and their one scale, the mean magnitude of the whole matrix."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


class TernaryMatmul(torch.autograd.Function):
    """y = x @ [W1 | W2 | ...].T as a low-bit runtime computes it: int8 rows times ternary codes.

    The product is an exact integer one, which is also faster than float. x [n, in], Wi [out_i, in]
    -> y [n, sum(out_i)]. Backward treats both roundings as the identity (straight-through).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        fine = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)  # [n, 1] levels per unit
        levels = (x * fine).round_().clamp_(-128, 127).to(torch.int8)
        pairs = [ternarize(w) for w in weights]
        codes = torch.cat([c for c, _ in pairs]).to(torch.int8)
        scale = torch.cat([s.expand(c.shape[0]) for c, s in pairs])  # [out]
        ctx.save_for_backward(levels, fine, codes, scale)
        ctx.rows = [w.shape[0] for w in weights]
        return (torch._int_mm(levels, codes.t()) / fine).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        levels, fine, codes, scale = ctx.saved_tensors
        grad_x = grad @ (codes * scale[:, None])
        grad_w = grad.t() @ (levels / fine)
        return (grad_x, *grad_w.split(ctx.rows))


def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * gain / math.sqrt(columns))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split pairs (j, j + K/2). x [B, *, T, K], cos [T, K/2]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class Layer(nn.Module):
    """Attention, then a gated MLP, each with a norm before both of its matrix products."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        width, inner, kv = s.hidden_size, s.intermediate_size, s.num_key_value_heads * s.head_dim
        calm = 1 / math.sqrt(2 * s.num_hidden_layers)  # keeps the residual stream near 1 at first
        self.input_layernorm = nn.Parameter(torch.ones(width))
        self.q_proj, self.o_proj = matrix(width, width), matrix(width, width, calm)
        self.k_proj, self.v_proj = matrix(kv, width), matrix(kv, width)
        self.attn_sub_norm = nn.Parameter(torch.ones(width))
        self.post_attention_layernorm = nn.Parameter(torch.ones(width))
        self.gate_proj, self.up_proj = matrix(inner, width), matrix(inner, width)
        self.ffn_sub_norm = nn.Parameter(torch.ones(inner))
        self.down_proj = matrix(width, inner, calm)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [n, D], mask [B, 1, T, T] true where a token may look -> [n, D]."""
        x = x + self.attend(self.norm(x, self.input_layernorm), cos, sin, mask)
        gate, up = TernaryMatmul.apply(self.norm(x, self.post_attention_layernorm), self.gate_proj, self.up_proj).chunk(
            2, dim=-1
        )
        inner = self.norm(F.relu(gate).square() * up, self.ffn_sub_norm)
        return x + TernaryMatmul.apply(inner, self.down_proj)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        s, batch, length = self.shape, mask.shape[0], mask.shape[-1]
        qkv = TernaryMatmul.apply(x, self.q_proj, self.k_proj, self.v_proj)
        heads = qkv.view(batch, length, -1, s.head_dim).transpose(1, 2)  # [B, H + 2G, T, K]
        q, k, v = heads.split([s.num_attention_heads, s.num_key_value_heads, s.num_key_value_heads], dim=1)
        share = s.num_attention_heads // s.num_key_value_heads
        k, v = rotate(k, cos, sin).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
        out = out.transpose(1, 2).reshape(batch * length, s.hidden_size)
        return TernaryMatmul.apply(self.norm(out, self.attn_sub_norm), self.o_proj)


class BitNet(nn.Module):
    """Token ids in, loss or logits out. The embedding doubles as the output matrix."""

    cos: Tensor  # [context, K/2]
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.05)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.num_hidden_layers)])
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        half = torch.arange(shape.head_dim // 2) / (shape.head_dim // 2)
        angle = torch.arange(shape.max_position_embeddings)[:, None] * shape.rope_theta**-half
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def logits(self, ids: Tensor, document: Tensor) -> Tensor:
        """ids, document [B, T] (which document of its row a token is of) -> [n, V]."""
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = (document[:, :, None] == document[:, None, :])[:, None] & causal
        x = F.embedding(ids, self.embed_tokens).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length], mask)
        x = F.rms_norm(x, self.norm.shape, self.norm, self.shape.rms_norm_eps)
        return x @ self.embed_tokens.t()

    def forward(self, ids: Tensor, targets: Tensor, document: Tensor) -> Tensor:
        """Mean loss in nats over the positions whose target is not -100."""
        return F.cross_entropy(self.logits(ids, document), targets.flatten(), ignore_index=-100)


# ---------------------------------------------------------------------------------------------
# The optimizer


def orthogonalize(g: Tensor, rounds: int = 5) -> Tensor:
    """Near U V^T of g = U S V^T, by Newton-Schulz with Muon's quintic. g [matrices, out, in]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose step has all singular values near 1; all matrices of a shape go at once."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for shape, params in alike.items():
                update = orthogonalize(torch.stack([self.momentum(p, group) for p in params]))
                size = -group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=size)

    def momentum(self, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """The Nesterov look-ahead of p's averaged gradient."""
        assert p.grad is not None
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(average, group["momentum"])


def optimizers(model: BitNet, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the ternary matrices, AdamW for embedding and norms. `peak` is kept for `pace`."""
    matrices = [p for n, p in model.named_parameters() if n.endswith("_proj")]
    others = [p for n, p in model.named_parameters() if not n.endswith("_proj")]
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    both = [Muon(matrices, args.matrix_lr, args.weight_decay), adam]
    for group in (g for o in both for g in o.param_groups):
        group["peak"] = group["lr"]
    return both


def pace(progress: float, warm: float = 0.02, cool: float = 0.5) -> float:
    """Share of the peak rate at `progress` in 0..1: up, level, then straight down to nothing."""
    return max(0.0, min(1.0, (progress + 1e-3) / warm, (1 - progress) / cool))


# ---------------------------------------------------------------------------------------------
# Rows of tokens

Batch = tuple[Tensor, Tensor, Tensor]  # ids, targets (-100 = none), document; each [B, T]


def pack(documents: list[corpus.Document], length: int) -> list[list[corpus.Document]]:
    """Documents into rows of at most `length` tokens; the longest that fits is always next."""
    waiting = sorted(documents, key=len)
    lengths = [len(d) for d in waiting]
    packed = []
    while waiting:
        row: list[corpus.Document] = []
        room = length
        while waiting and (lengths[0] <= room or not row):
            at = max(0, bisect.bisect_right(lengths, room) - 1) if row else -1
            row.append(waiting.pop(at))
            room -= lengths.pop(at)
        packed.append(row)
    return packed


def batch(packed: list[list[corpus.Document]], length: int) -> Batch:
    """Rows side by side. A token predicts the next one of its own document; the rest is padding."""
    ids = torch.zeros(len(packed), length, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    document = torch.full_like(ids, -1)
    for r, row in enumerate(packed):
        at = 0
        for d, doc in enumerate(row):
            n = min(len(doc), length - at)
            ids[r, at : at + n] = torch.tensor(doc.ids[:n])
            learn = [i if yes else -100 for i, yes in zip(doc.ids, doc.learn, strict=True)]
            targets[r, at : at + n - 1] = torch.tensor(learn[1:n])
            document[r, at : at + n] = d
            at += n
    return ids, targets, document


def epochs(texts: corpus.Corpus, tokenizer: Tokenizer, args: argparse.Namespace) -> Iterator[Batch]:
    """Training batches without end. Each epoch deals, packs and shuffles anew."""
    for epoch in itertools.count():
        rng = random.Random(f"{args.seed} {epoch}")
        stories, talks = texts.deal(rng)
        documents = corpus.encode_stories(tokenizer, stories)
        documents += corpus.encode_talks(tokenizer, talks)
        packed = pack(documents, args.context)
        rng.shuffle(packed)
        for at in range(0, len(packed) - args.rows + 1, args.rows):
            yield batch(packed[at : at + args.rows], args.context)


# ---------------------------------------------------------------------------------------------
# Judging


@torch.no_grad()
def evaluate(model: BitNet, tokenizer: Tokenizer, stories: list[str]) -> dict[str, float]:
    """Loss on stories never trained on, to the end-of-text token, each story on its own.

    Nats per token, their perplexity, and bits per byte of text, which does not depend on the
    tokenizer. Of stories longer than the context the rest is not counted, neither token nor byte.
    """
    length, nats, tokens = model.shape.max_position_embeddings, 0.0, 0
    documents = corpus.encode_stories(tokenizer, stories)
    packed = pack(documents, length)
    for at in range(0, len(packed), 8):
        ids, targets, document = batch(packed[at : at + 8], length)
        count = int((targets >= 0).sum())
        nats += model(ids, targets, document).item() * count
        tokens += count
    size = sum(len(tokenizer.decode(d.ids[:length]).encode()) for d in documents)
    loss, bits = nats / tokens, nats / size / math.log(2)
    found = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
    return {**found, "tokens": tokens, "bytes": size}


@torch.no_grad()
def sample(model: BitNet, tokenizer: Tokenizer, prompt: str, temperature: float = 0.7, limit: int = 60) -> str:
    """What the model writes after `prompt`, which spells out its special tokens."""
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    start = len(ids)
    while len(ids) < min(start + limit, model.shape.max_position_embeddings):
        row = torch.tensor([ids])
        logits = model.logits(row, torch.zeros_like(row))[-1]
        ids.append(int(torch.multinomial((logits / temperature).softmax(-1), 1)))
        if ids[-1] in (EOS, END):
            break
    return tokenizer.decode(ids[start:])


# ---------------------------------------------------------------------------------------------
# Writing


def swap_in(new: Path, old: Path) -> None:
    """Put the finished file or folder `new` where `old` is, so that no reader sees half of it."""
    trash = old.with_name(old.name + ".old")
    if old.is_dir():
        shutil.rmtree(trash, ignore_errors=True)
        old.rename(trash)
    new.rename(old)
    shutil.rmtree(trash, ignore_errors=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def export(model: BitNet, tokenizer: Tokenizer, folder: Path, card: str) -> None:
    """Write a Hugging Face directory: latent float weights, which readers ternarize on loading."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(hugging_face_names(model), new / "model.safetensors", {"format": "pt"})
    (new / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    write_json(new / "config.json", model_config(model.shape))
    write_json(new / "generation_config.json", generation_config())
    write_json(new / "tokenizer_config.json", tokenizer_config(model.shape))
    (new / "chat_template.jinja").write_text(corpus.CHAT_TEMPLATE, encoding="utf-8")
    (new / "README.md").write_text(card, encoding="utf-8")
    tokenizer.save(str(new / "tokenizer.json"))
    swap_in(new, folder)


def model_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **asdict(shape),
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "torch_dtype": "float32",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
            "modules_to_not_convert": ["lm_head"],
        },
    }


def generation_config() -> dict[str, Any]:
    """Stop at the end of a text and of a turn; sample a little below the model's own spread."""
    return {
        "bos_token_id": BOS,
        "eos_token_id": [EOS, END],
        "pad_token_id": EOS,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": corpus.BOS,
        "eos_token": corpus.EOS,
        "pad_token": corpus.EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_position_embeddings,
        "chat_template": corpus.CHAT_TEMPLATE,
    }


PARTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "attn_sub_norm"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "ffn_sub_norm"), "mlp"),
}


def hugging_face_names(model: BitNet) -> dict[str, Tensor]:
    """layers.0.q_proj -> model.layers.0.self_attn.q_proj.weight, and so on."""
    named = {}
    for name, p in model.named_parameters():
        path, _, last = name.rpartition(".")
        words = ["model", path, PARTS.get(last), last, "weight"]
        named[".".join(w for w in words if w)] = p.detach().clone()
    return named


# ---------------------------------------------------------------------------------------------
# Training

PROMPTS = (
    f"{corpus.BOS}Once upon a time",
    f"{corpus.BOS}<|user|>Tell me a story about a dog.{corpus.END}<|assistant|>",
    f"{corpus.BOS}<|user|>What is your name?{corpus.END}<|assistant|>",
    f"{corpus.BOS}<|user|>What color is the sky?{corpus.END}<|assistant|>",
)


class Log:
    """Lines to the terminal and to the end of a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        print(line, flush=True)
        print(line, file=self.file, flush=True)


class Run:
    """One training run in its work directory: the model, what changes it, and how far it has come.

    `seconds` is training time. A step that was stopped or starved counts little more than the fast
    ones do, so that `--minutes` buys about the same training on a busy machine, only later.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        args.work.mkdir(parents=True, exist_ok=True)
        (args.work / "pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
        self.args, self.log = args, Log(args.work / "log.txt")
        self.texts, self.heldout = read_texts(args), corpus.read_stories(args.heldout)
        self.tokenizer = load_tokenizer(self.texts, args)
        self.model = BitNet(shape_of(args, self.tokenizer))
        self.optimizers = optimizers(self.model, args)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.times: list[float] = []  # seconds of each step since the start, sorted
        self.path = args.work / "checkpoint.pt"
        if self.path.exists():
            self.load()
        self.log(f"{self.model.shape}")
        self.log("{:,} ternary parameters and {:,} others".format(*sizes(self.model)))

    def done(self) -> float:
        """0 at the start, 1 at the end."""
        if self.args.steps:
            return self.step / self.args.steps
        return self.seconds / (60 * self.args.minutes)

    def learn(self, ids: Tensor, targets: Tensor, document: Tensor) -> float:
        """One step; the loss before it."""
        began = time.perf_counter()
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = group["peak"] * pace(self.done())
        loss = self.model(ids, targets, document)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        took = time.perf_counter() - began
        bisect.insort(self.times, took)
        self.seconds += min(took, 1.25 * self.times[len(self.times) // 10])
        self.tokens += ids.numel()
        self.step += 1
        return loss.item()

    def train(self) -> None:
        batches = itertools.islice(epochs(self.texts, self.tokenizer, self.args), self.step, None)
        losses: list[float] = []
        saved_at = time.monotonic()
        while self.done() < 1:
            losses.append(self.learn(*next(batches)))
            if self.step % self.args.log_every == 0:
                self.report(statistics.mean(losses))
                losses = []
            if time.monotonic() - saved_at > 60 * self.args.save_minutes:
                self.save()
                self.judge(self.heldout[:48])
                saved_at = time.monotonic()
        self.save()
        self.judge(self.heldout)

    def report(self, loss: float) -> None:
        speed = self.tokens / self.step / statistics.median(self.times)
        self.log(
            f"step {self.step} {self.done():6.1%} loss {loss:.4f} "
            f"{self.tokens / 1e6:.2f} M tokens {speed:,.0f} tokens/s"
        )

    def judge(self, heldout: list[str]) -> None:
        """Evaluate, show what the model says, and export it with its card."""
        result = evaluate(self.model, self.tokenizer, heldout)
        self.log("held-out " + " ".join(f"{k} {v:.5g}" for k, v in result.items()))
        for prompt in PROMPTS:
            self.log(f"  {prompt!r} -> {sample(self.model, self.tokenizer, prompt)!r}")
        export(self.model, self.tokenizer, self.args.work / "export", self.card(result))

    def save(self) -> None:
        """Write a second file, then rename it: an interrupted run keeps the last checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
        }
        new = self.path.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.path)

    def load(self) -> None:
        state = torch.load(self.path)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        vars(self).update(state["progress"])
        self.log(f"resumed at step {self.step}")

    def card(self, result: dict[str, float]) -> str:
        ternary, others = sizes(self.model)
        return CARD.format(
            ternary=f"{ternary:,}",
            others=f"{others:,}",
            state="finished" if self.done() >= 1 else f"unfinished, {self.done():.0%} of its run",
            command=command(self.args),
            step=self.step,
            tokens=f"{self.tokens / 1e6:.1f}",
            minutes=round(self.seconds / 60),
            **asdict(self.model.shape),
            **{f"eval_{k}": v for k, v in result.items()},
        )


def read_texts(args: argparse.Namespace) -> corpus.Corpus:
    pairs = [pair for path in args.chitchat for pair in corpus.read_pairs(path)]
    facts = corpus.little_facts() * args.facts
    return corpus.Corpus(corpus.read_stories(args.stories), pairs, facts)


def load_tokenizer(texts: corpus.Corpus, args: argparse.Namespace) -> Tokenizer:
    """The work directory's tokenizer, trained on these texts if there is none yet."""
    path = args.work / "tokenizer.json"
    if not path.exists():
        corpus.train_tokenizer(texts.texts(), args.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def shape_of(args: argparse.Namespace, tokenizer: Tokenizer) -> Shape:
    return Shape(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.hidden,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.context,
    )


def sizes(model: BitNet) -> tuple[int, int]:
    """How many ternary parameters, and how many others."""
    ternary = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj"))
    return ternary, sum(p.numel() for p in model.parameters()) - ternary


def command(args: argparse.Namespace) -> str:
    """The command line of this run, with the names of the texts but not where they lie."""
    words = ["python -m lutra.tools.train"]
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        shown = [v.name if isinstance(v, Path) else str(v) for v in values]
        if value and name not in ("work", "threads", "minutes" if args.steps else "steps"):
            words.append(f"--{name.replace('_', '-')} {' '.join(shown)}")
    return " ".join(words)


CARD = """\
# Lutra's built-in model

A small ternary language model (BitNet b1.58 layers) that tells children's stories in simple English
and answers very easy questions. It is there so that lutra has something to run from the first
minute, and something real to be tested on. It knows next to nothing about the world: do not rely on
anything it says. System messages are accepted and change nothing.

- {ternary} ternary parameters (one scale per matrix), {others} others (embedding, norms)
- {num_hidden_layers} layers, hidden size {hidden_size}, MLP {intermediate_size}, \
{num_attention_heads} heads, {num_key_value_heads} key/value heads, vocabulary {vocab_size}, \
context {max_position_embeddings}
- trained from scratch, quantization-aware, for {step} steps, {tokens} M tokens, {minutes} minutes
  on a CPU; this copy is {state}
- held-out TinyStories: {eval_loss:.4f} nats per token (perplexity {eval_perplexity:.2f}),
  {eval_bits_per_byte:.4f} bits per byte, over {eval_tokens:.0f} tokens

## Data

| text | use | licence |
|---|---|---|
| TinyStories (Eldan and Li, 2023), about 10,000 | stories, also as answers | CDLA-Sharing-1.0 |
| Microsoft Personality Chat question-answer pairs | small talk | MIT |
| lutra's own little facts and wordings (tools/corpus.py) | easy questions | as lutra |

A few answers of the second were replaced by lutra's own.

## Made by

    {command}
"""


# ---------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="lutra.tools.train",
        description="Train a small BitNet b1.58 (ternary weights, int8 activations) on a CPU.",
        epilog="The same command resumes an interrupted run from its checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    text = p.add_argument_group("texts")
    text.add_argument("--stories", type=Path, required=True, help="stories, <|endoftext|> between")
    text.add_argument("--heldout", type=Path, required=True, help="stories only to evaluate on")
    text.add_argument("--facts", type=int, default=1, help="times an epoch deals each little fact")
    text.add_argument("--chitchat", type=Path, nargs="*", default=[], help="Question/Answer .tsv")
    size = p.add_argument_group("model")
    size.add_argument("--vocab", type=int, default=2048, help="pieces of the tokenizer")
    size.add_argument("--hidden", type=int, default=256, help="hidden size")
    size.add_argument("--inner", type=int, default=768, help="inner size of the MLP")
    size.add_argument("--layers", type=int, default=6, help="layers")
    size.add_argument("--heads", type=int, default=4, help="attention heads")
    size.add_argument("--kv-heads", type=int, default=2, help="key/value heads")
    size.add_argument("--context", type=int, default=512, help="tokens of a training row")
    run = p.add_argument_group("run")
    run.add_argument("--work", type=Path, required=True, help="folder for everything written")
    run.add_argument("--minutes", type=float, default=65, help="training time to spend")
    run.add_argument("--steps", type=int, help="steps to do, instead of --minutes")
    run.add_argument("--rows", type=int, default=8, help="rows in a step")
    run.add_argument("--lr", type=float, default=4e-3, help="peak rate of embedding and norms")
    run.add_argument("--matrix-lr", type=float, default=0.02, help="peak rate of the matrices")
    run.add_argument("--weight-decay", type=float, default=0.1, help="decay of the matrices")
    run.add_argument("--seed", type=int, default=1, help="of weights and order")
    run.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    run.add_argument("--save-minutes", type=float, default=4, help="between checkpoints")
    run.add_argument("--log-every", type=int, default=20, help="steps between log lines")
    return p


def main(argv: list[str] | None = None) -> None:
    Run(parser().parse_args(argv)).train()


if __name__ == "__main__":
    main()
