"""Small real models, deterministic by seed, built from configs without a network.

Each case is one difficulty: tied heads, grouped queries, shared modules, functional weights,
control flow that depends on data, strange convolutions. Tests of every part run over all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model and an example input for it: `model(*args, **kwargs)`."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[torch.Generator], Inputs]

    def build(self, seed: int = 0) -> nn.Module:
        """Build the model in eval mode; equal seeds give equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().eval()

    def inputs(self, seed: int = 0) -> Inputs:
        """Return (args, kwargs); equal seeds give equal inputs."""
        return self.example(torch.Generator().manual_seed(seed))


VOCABULARY, TOKENS, BATCH = 60, 7, 2


def _tokens(generator: torch.Generator) -> Inputs:
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return (), {"input_ids": ids, "attention_mask": mask}


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[..., Inputs]:
    return lambda generator: ((torch.randn(shape, generator=generator).to(dtype),), {})


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
        )
    )


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=5,
        )
    )


class Block(nn.Module):
    """The basic block of CIFAR residual networks; shortcuts subsample and pad with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2: three stages of `blocks` blocks with 16, 32, 64 channels."""

    def __init__(self, width: int = 16, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(Block(outputs if i else inputs, outputs, 1 if i else stride) for i in range(blocks))
    )


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _seq2seq() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sequence first is not the fastest
        return nn.Transformer(16, 2, 1, 1, 32)


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=VOCABULARY,
            num_mel_bins=6,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=10,
            max_target_positions=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _mixture(implementation: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=16,
        )
        config._experts_implementation = implementation
        return MixtralForCausalLM(config)

    return make


class Attention(nn.Module):
    """A classifier on `nn.MultiheadAttention`, whose projections are bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Shared(nn.Module):
    """A module called twice, a weight tied to two layers, a frozen and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.block = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12)
        self.again.weight = self.tied.weight
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.unused = nn.Linear(12, 5)
        self.head = nn.Linear(12, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.block(torch.relu(self.block(self.table(ids))))
        x = self.again(torch.tanh(self.tied(x)))
        return self.head(self.frozen(torch.relu(x)))


class Functional(nn.Module):
    """Weights that no layer owns: `F.linear`, `@`, einsum, `F.conv2d`, `F.embedding`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(10, 6) / 3)
        self.b = nn.Parameter(torch.zeros(10))
        self.right = nn.Parameter(torch.randn(10, 8) / 3)
        self.summed = nn.Parameter(torch.randn(5, 8) / 3)
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.table = nn.Parameter(torch.randn(9, 6))
        self.heads = nn.Parameter(torch.randn(8, 2, 3))
        self.scale = nn.Parameter(torch.randn(3, 10))

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.embedding(ids, self.table)
        x = functional.linear(x, self.w, self.b) * self.scale
        y = x @ self.right
        z = torch.einsum("bsi,oi->bso", y, self.summed)
        heads = torch.einsum("bsi,ihk->bshk", y, self.heads)
        image = functional.conv2d(z.unsqueeze(1), self.kernel, padding=1)
        return image.sum((1, 2, 3)) + heads.sum((1, 2, 3))


class Branching(nn.Module):
    """Control flow that depends on data: no export, no symbolic trace of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.positive = nn.Linear(8, 4)
        self.negative = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.positive(x) if x.square().sum() > 0 else self.negative(x)


class Convolutions(nn.Module):
    """Groups, stride, dilation, padding modes, one and three dimensions, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding="same", padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.circular = nn.Conv2d(12, 6, 3, padding=1, padding_mode="circular", bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 4, 3)
        self.solid = nn.Conv3d(1, 2, (2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.dilated(torch.relu(self.strided(x))))
        x = self.up(self.circular(torch.relu(self.grouped(x))))
        x = self.line(x.flatten(2)).unflatten(2, (3, -1))
        return self.solid(x.unsqueeze(1)).mean((1, 2, 3))


class UNet(nn.Module):
    """Down, up and across: strided, transposed, depthwise, with a size asked for at the call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, (3, 2), stride=2, padding=(1, 0), bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 8, (3, 2), stride=2, padding=(1, 0))
        self.grouped = nn.ConvTranspose2d(16, 8, 3, padding=1, groups=4)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.depthwise(self.down(x)))
        y = self.up(y, output_size=x.shape[-2:])
        return self.last(torch.relu(self.grouped(torch.cat([x, y], 1))))


class Audio(nn.Module):
    """One dimension: dilated causal convolutions, an upsampler, and one unbatched signal."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv1d(1, 8, 5, stride=2, padding=2, padding_mode="replicate")
        self.dilated = nn.Conv1d(8, 16, 3, dilation=2, padding="same")
        self.out = nn.ConvTranspose1d(16, 4, 4, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.out(torch.tanh(self.dilated(torch.relu(self.into(x)))))
        return whole + self.out(torch.tanh(self.dilated(torch.relu(self.into(x[0])))))


class Volume(nn.Module):
    """Three dimensions, plain and transposed, kernels of three different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 6, (3, 2, 1), stride=(2, 1, 1), padding=(1, 1, 0))
        self.grouped = nn.Conv3d(6, 6, 3, padding=1, groups=2, padding_mode="circular")
        self.up = nn.ConvTranspose3d(6, 3, (2, 1, 3), stride=(2, 1, 1), output_padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.grouped(torch.relu(self.down(x)))))


class Crossed(nn.Module):
    """`nn.MultiheadAttention` with keys and values of their own widths, weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, kdim=6, vdim=10, add_bias_kv=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, weights = self.attention(q, k, v)
        return y.mean((0, 2)) + weights.square().sum((1, 2))


class Recurrent(nn.Module):
    """Two directions, two layers and projections; GRU; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, bidirectional=True, proj_size=3)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.rnn = nn.RNN(5, 4, bias=False, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3]), batch_first=True)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.rnn(self.gru(y)[0])[0]


class Tagger(nn.Module):
    """An LSTM tagger."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(ids))[0])


class Normed(nn.Module):
    """An MLP with batch norms after and a layer norm before its linear layers, two adjacent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Linear(6, 20, bias=False), nn.BatchNorm1d(20)
        self.ln, self.left, self.right = nn.LayerNorm(20), nn.Linear(20, 5), nn.Linear(20, 5)
        self.down, self.up = nn.Linear(5, 3), nn.Linear(3, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(torch.relu(self.bn(self.first(x))))
        return self.up(self.down(torch.relu(self.left(x)) * self.right(x)))


def _mlp(*sizes: int, dtype: torch.dtype = torch.float32) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.GELU()]
        return nn.Sequential(*layers[:-1])

    return make


def _ids(high: int, *shape: int) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: ((torch.randint(0, high, shape, generator=generator),), {})


def _pairs(generator: torch.Generator) -> Inputs:
    source = torch.randn(6, BATCH, 16, generator=generator)
    return (source, torch.randn(4, BATCH, 16, generator=generator)), {}


def _crossed(generator: torch.Generator) -> Inputs:
    query = torch.randn(5, BATCH, 16, generator=generator)
    key = torch.randn(4, BATCH, 6, generator=generator)
    return (query, key, torch.randn(4, BATCH, 10, generator=generator)), {}


def _text_pairs(generator: torch.Generator) -> Inputs:
    _, given = _tokens(generator)
    given["decoder_input_ids"] = torch.randint(1, VOCABULARY, (BATCH, 4), generator=generator)
    return (), given


def _speech(generator: torch.Generator) -> Inputs:
    features = torch.randn(BATCH, 6, 20, generator=generator)
    ids = torch.randint(1, VOCABULARY, (BATCH, 4), generator=generator)
    return (), {"input_features": features, "decoder_input_ids": ids}


def _images(generator: torch.Generator) -> Inputs:
    return (), {"pixel_values": torch.randn(BATCH, 3, 8, 8, generator=generator)}


CASES = (
    Case("attention", Attention, _normal(BATCH, TOKENS, 16)),
    Case("audio", Audio, _normal(BATCH, 1, 21)),
    Case("bert", _bert, _tokens),
    Case("branching", Branching, _normal(5, 8)),
    Case("convolutions", Convolutions, _normal(BATCH, 3, 8, 8)),
    Case("crossed", Crossed, _crossed),
    Case("encoder", _encoder, _normal(BATCH, TOKENS, 16)),
    Case("functional", Functional, _ids(9, BATCH, 3)),
    Case("gpt2", _gpt2, _tokens),
    Case("half", _mlp(24, 32, 8, dtype=torch.bfloat16), _normal(6, 24, dtype=torch.bfloat16)),
    Case("llama", _llama, _tokens),
    Case("mixture", _mixture("grouped_mm"), _tokens),
    Case("mixture-by-expert", _mixture("eager"), _tokens),
    Case("mixture-gathered", _mixture("batched_mm"), _tokens),
    Case("normed", Normed, _normal(8, 6)),
    Case("prime", _mlp(17, 31, 13, 7), _normal(5, 17)),
    Case("recurrent", Recurrent, _normal(BATCH, 4, 6)),
    Case("resnet20", lambda: ResNet20(width=4), _normal(BATCH, 3, 8, 8)),
    Case("seq2seq", _seq2seq, _pairs),
    Case("shared", Shared, _ids(30, BATCH, 5)),
    Case("t5", _t5, _text_pairs),
    Case("tagger", Tagger, _ids(30, BATCH, 5)),
    Case("unet", UNet, _normal(BATCH, 3, 9, 8)),
    Case("vit", _vit, _images),
    Case("volume", Volume, _normal(BATCH, 2, 5, 4, 4)),
    Case("whisper", _whisper, _speech),
)
BY_NAME = {case.name: case for case in CASES}


def case(name: str) -> Case:
    """Return a case by name.

    >>> case("prime").inputs()[0][0].shape
    torch.Size([5, 17])
    """
    return BY_NAME[name]
