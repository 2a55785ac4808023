"""Small models of every kind that PEFT tests its layers on, built without a download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A model, what is put into it, and the modules that PEFT is told to adapt.

    `parameters` are targets that code reads, `saved` is a module to be trained whole. `hard` are
    behaviours that cannot be compared here, each with its reason. `prepare` changes the values that
    PEFT's model begins with.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Batch]
    targets: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    saved: str = ""
    dora: bool = True
    hard: Mapping[str, str] = field(default_factory=dict)
    text: bool = False
    prepare: Callable[[nn.Module], None] = lambda model: None


class MLP(nn.Module):
    """Two linear layers and a head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20, bias=bias)
        self.norm = nn.LayerNorm(20)
        self.lin1 = nn.Linear(20, 16, bias=bias)
        self.head = nn.Linear(16, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lin1(torch.relu(self.norm(self.lin0(x))))))


class Embedded(nn.Module):
    """An embedding, the linear layer of transformers that is stored inputs first, a linear one."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.emb = nn.Embedding(30, 6, padding_idx=0)
        self.conv1d = Conv1D(8, 6)
        self.lin0 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(torch.tanh(self.conv1d(self.emb(x))).mean(1))


class Tied(nn.Module):
    """An embedding whose weight the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.table(x))))


class Conv(nn.Module):
    """Two convolutions over some axes, the second of kernel 1 (but over 3 axes), and a head."""

    def __init__(self, axes: int, groups: int = 1) -> None:
        super().__init__()
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.conv = kind(4, 8, 3, stride=2, padding=1)
        self.point = kind(8, 6, 2 if axes == 3 else 1, groups=groups)
        self.lin = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(torch.relu(self.point(torch.relu(self.conv(x)))).flatten(2).mean(2))


class Attention(nn.Module):
    """PyTorch's attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lin0 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(self.mha(x, x, x)[0])


class Weights(nn.Module):
    """Matrices and stacks of matrices that the module's own code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 12, 8) * 0.3)
        self.down = nn.Parameter(torch.randn(3, 8, 12) * 0.3)
        self.out = nn.Parameter(torch.randn(5, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(torch.matmul(x, self.up.mT))
        return nn.functional.linear(torch.matmul(y, self.down.mT).sum(0), self.out)


class Experts(nn.Module):
    """A module of bare parameters in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(6, 8)
        self.experts = Weights()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(self.lin0(x))


def _tensor(*shape: int) -> Callable[[torch.Generator], Batch]:
    return lambda generator: {"x": torch.randn(*shape, generator=generator)}


def _ids(high: int, *shape: int, name: str = "x") -> Callable[[torch.Generator], Batch]:
    return lambda generator: {name: torch.randint(1, high, shape, generator=generator)}


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
        )
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, **_ENDS)
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            **_ENDS,
        )
    )


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=50,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=3,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    )


_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def _pairs(generator: torch.Generator) -> Batch:
    return {
        "input_ids": torch.randint(3, 50, (2, 7), generator=generator),
        "decoder_input_ids": torch.randint(3, 50, (2, 5), generator=generator),
    }


def _images(generator: torch.Generator) -> Batch:
    return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}


def _by_groups(model: nn.Module) -> None:
    """Let A of a convolution in two groups read the inputs of its own group alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                rows, inputs = parameter.shape[0] // 2, parameter.shape[1] // 2
                parameter[:rows, inputs:] = 0
                parameter[rows:, :inputs] = 0


TIED = {
    "gradients": "PEFT trains two adapters beside a tied weight, tnc one",
    "merge": "PEFT adds the adapters of both modules to the one weight (its issue #2777)",
    "training": "PEFT trains two adapters beside a tied weight, tnc one",
}
GROUPS = {
    "merge": "PEFT refuses to merge convolutions in groups",
    "gradients": "PEFT's A reads the inputs of all groups, which is no change of the weight",
    "training": "PEFT's A reads the inputs of all groups, which is no change of the weight",
}
TWICE = {
    "gradients": "PEFT 0.21.2 adds the delta of out_proj twice, of which one has no gradient",
    "training": "PEFT 0.21.2 adds the delta of out_proj twice, of which one has no gradient",
}
IDS = "input_ids"

MODELS = (
    Model("mlp", MLP, _tensor(6, 10), ("lin0", "lin1"), saved="head"),
    Model("mlp without bias", lambda: MLP(False), _tensor(6, 10), ("lin0", "lin1"), saved="head"),
    Model("embedding, Conv1D", Embedded, _ids(30, 4, 5), ("emb", "conv1d"), dora=False),
    Model("tied", Tied, _ids(30, 4, 5), ("table", "head"), dora=False, hard=TIED),
    Model("conv1d", lambda: Conv(1), _tensor(3, 4, 9), ("conv", "point")),
    Model("conv2d", lambda: Conv(2), _tensor(3, 4, 7, 7), ("conv", "point")),
    Model("conv3d", lambda: Conv(3), _tensor(2, 4, 5, 5, 5), ("conv", "point")),
    Model(
        "conv in groups",
        lambda: Conv(2, 2),
        _tensor(3, 4, 7, 7),
        ("point",),
        dora=False,
        hard=GROUPS,
        prepare=_by_groups,
    ),
    Model("attention", Attention, _tensor(3, 5, 8), ("mha",), dora=False, hard=TWICE),
    Model(
        "parameters",
        Experts,
        _tensor(5, 6),
        ("lin0",),
        ("experts.up", "experts.down", "experts.out"),
        dora=False,
    ),
    Model("bert", _bert, _ids(50, 2, 9, name=IDS), ("query", "value", "dense"), saved="classifier"),
    Model("gpt2", _gpt2, _ids(50, 2, 9, name=IDS), ("c_attn", "c_fc"), text=True),
    Model("llama", _llama, _ids(50, 2, 9, name=IDS), ("q_proj", "v_proj", "up_proj"), text=True),
    Model("t5", _t5, _pairs, ("q", "v", "wo")),
    Model("vit", _vit, _images, ("q_proj", "v_proj", "fc1"), saved="classifier"),
)
