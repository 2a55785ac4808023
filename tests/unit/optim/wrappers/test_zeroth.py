"""Zeroth order: slopes, logs that replay bit for bit, packets that agree everywhere."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.seeds import direction, mixed
from tnc.optim.wrappers.fedkseed import FedKSeed, merged
from tnc.optim.wrappers.mezo import Log, MeZO


def setting(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    return net, torch.randn(8, 4).to(dtype), torch.randn(8, 2).to(dtype)


def groups(net: nn.Module) -> list[dict[str, object]]:
    decayed = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() < 2]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "lr": 0.02}]


def test_the_slope_is_the_directional_derivative() -> None:
    net, x, y = setting(torch.float64)
    before = [p.detach().clone() for p in net.parameters()]
    mezo = MeZO(net.parameters(), lr=0.0, eps=1e-5)
    mezo.step(lambda: (net(x) - y).square().mean())
    (net(x) - y).square().mean().backward()
    seed = mixed(0, 0)
    wanted = sum(
        float((p.grad * direction(p, seed, k)).sum()) for k, p in enumerate(net.parameters())
    )
    assert abs(mezo.log.entries[0].slope - wanted) < 1e-8
    for old, new in zip(before, net.parameters()):
        assert torch.allclose(old, new, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_replays_bit_for_bit(dtype: torch.dtype) -> None:
    net, x, y = setting(dtype)
    first = copy.deepcopy(net)
    mezo = MeZO(groups(net), lr=0.05, seed=3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(mezo, 0.9)
    for _ in range(12):
        mezo.step(lambda: (net(x) - y).square().mean())
        schedule.step()
    log = Log.parse(mezo.log.text())
    assert log == mezo.log
    log.replay_([p for group in groups(first) for p in group["params"]])  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), first.parameters()))


def test_it_trains_and_resumes() -> None:
    net, x, y = setting()
    mezo = MeZO(net.parameters(), lr=0.01, seed=1)
    losses = [mezo.step(lambda: (net(x) - y).square().mean()) for _ in range(150)]
    assert losses[-1] < 0.9 * losses[0]
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": mezo.state_dict()}, file)
    expected = [mezo.step(lambda: (net(x) - y).square().mean()) for _ in range(5)]
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, _, _ = setting()
    again.load_state_dict(saved["net"])
    other = MeZO(again.parameters(), lr=0.01)
    other.load_state_dict(saved["optimizer"])
    assert [other.step(lambda: (again(x) - y).square().mean()) for _ in range(5)] == expected
    twin, copied = copy.deepcopy((net, mezo))
    assert copied.log == mezo.log
    assert copied.step(lambda: (twin(x) - y).square().mean()) > 0


def test_a_log_of_dense_weights_refuses_cores() -> None:
    net, x, y = setting()
    mezo = MeZO(net.parameters(), lr=0.01)
    mezo.step(lambda: (net(x) - y).square().mean())
    cores = [torch.zeros(6, 2), torch.zeros(2, 4), *list(net.parameters())[1:]]
    with pytest.raises(BindError, match="recorded on 4 parameters and these are 5") as error:
        mezo.log.replay_(cores)
    assert "before weights become cores" in str(error.value)
    with pytest.raises(BindError, match=r"shape \(6, 4\) and this one has shape \(6, 2\)"):
        mezo.log.replay_(cores[:1] + cores[2:])
    with pytest.raises(BindError, match="float32 and these are bfloat16"):
        mezo.log.replay_([p.bfloat16() for p in net.parameters()])
    mezo.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(6, 2))
    with pytest.raises(BindError, match="not those that the log began with"):
        mezo.step(lambda: 0.0)
    mezo.new_log()
    with pytest.raises(BindError, match="not the log"):
        Log.parse("{}")


def test_clients_and_server_agree_bit_for_bit() -> None:
    net, x, y = setting()
    start = copy.deepcopy(net.state_dict())
    server, twin = setting()[0], setting()[0]
    total = None
    for part in range(2):
        packets = []
        for client in range(2):
            net.load_state_dict(server.state_dict())
            own = FedKSeed(net.parameters(), lr=0.02, pool=64, seed=5, client=10 * part + client)
            rows = slice(4 * client, 4 * client + 4)
            for _ in range(6):
                own.step(lambda r=rows: (net(x[r]) - y[r]).square().mean())
            packets.append(own.take())
            rebuilt = setting()[0]
            rebuilt.load_state_dict(server.state_dict())
            packets[-1].apply_(list(rebuilt.parameters()))
            for a, b in zip(rebuilt.parameters(), net.parameters()):
                assert torch.allclose(a, b, rtol=0, atol=1e-5)
        packet = merged(packets, [4, 4])
        packet.apply_(list(server.parameters()))
        packet.apply_(list(twin.parameters()))
        total = packet if total is None else total + packet
    assert all(torch.equal(a, b) for a, b in zip(server.parameters(), twin.parameters()))
    net.load_state_dict(start)
    assert total is not None
    total.apply_(list(net.parameters()))
    for a, b in zip(net.parameters(), server.parameters()):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_a_packet_is_below_18_kilobytes_and_knows_its_pool() -> None:
    net, x, y = setting()
    client = FedKSeed(net.parameters(), lr=0.02)
    client.step(lambda: (net(x) - y).square().mean())
    packet = client.take()
    assert packet.lengths.nbytes < 18_000 and int((packet.lengths != 0).sum()) == 1
    assert not client.take().lengths.any()
    other = FedKSeed(net.parameters(), seed=1).take()
    with pytest.raises(BindError, match="different pools"):
        merged([packet, other])
    with pytest.raises(BindError, match="recorded on 4 parameters"):
        packet.apply_([torch.zeros(2)])
    with pytest.raises(BindError, match="1 weights for 2 packets"):
        merged([packet, packet], [1.0])
