import pytest
import torch
from timm.optim import Lars
from torch import nn
from torch.optim import SGD, AdamW

from mast_ext.train.config import OptimizerConfig
from mast_ext.train.loop.optimizers import (
    create_optimizer,
    create_schedule,
    gradient_norm,
    parameter_groups,
    warmup_cosine,
    weight_decay_at,
)

# step, warm-up, total, floor -> fraction of the peak
SCHEDULE = [
    (0, 4, 12, 0.0, 0.25),
    (3, 4, 12, 0.0, 1.0),
    (4, 4, 12, 0.0, 1.0),
    (8, 4, 12, 0.0, 0.5),
    (12, 4, 12, 0.0, 0.0),
    (12, 4, 12, 0.1, 0.1),
    (8, 4, 12, 0.1, 0.55),
    (99, 4, 12, 0.1, 0.1),
    (0, 0, 10, 0.0, 1.0),
    (5, 5, 5, 0.0, 1.0),
]


@pytest.mark.parametrize(("step", "warmup", "total", "floor", "expected"), SCHEDULE)
def test_warmup_cosine(step, warmup, total, floor, expected):
    assert warmup_cosine(step, warmup=warmup, total=total, floor=floor) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("sgd", SGD), ("lars", Lars)])
def test_biases_may_have_a_rate_of_their_own(name, kind):
    config = OptimizerConfig(name=name, lr=0.4, bias_lr=0.25, warmup=1)
    optimizer = create_optimizer(parameter_groups(nn.Linear(3, 2), 0.1), config, batch_size=64)
    assert isinstance(optimizer, kind)
    schedule = create_schedule(optimizer, config, steps_per_epoch=2, total_steps=8)
    for _ in range(5):
        weights, biases = (group["lr"] for group in optimizer.param_groups)
        assert biases == pytest.approx(weights / 4)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("sgd", SGD), ("lars", Lars)])
def test_optimizer_scales_with_the_batch_and_learns(name, kind):
    module = nn.Linear(3, 2)
    optimizer = create_optimizer(
        parameter_groups(module, 0.1), OptimizerConfig(name=name, lr=0.4), batch_size=64
    )
    before = module.weight.clone()
    module(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert not torch.equal(before, module.weight)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_lars_is_that_of_the_paper(weight_decay):
    """You et al. 2017, algorithm 1, with the rate outside of the momentum as in SSL's programs.

    Biases and norms neither adapt nor decay; weights adapt at weight decay 0, too.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    optimizer = create_optimizer(
        parameter_groups(module, weight_decay), OptimizerConfig(name="lars", lr=3.0), 128
    )
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = dict.fromkeys(expected, 0.0)
    for step in range(3):
        rate = optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1.5 - 0.5 * step
        optimizer.zero_grad()
        module(torch.randn(8, 5)).square().mul(torch.arange(1.0, 5)).sum().backward()
        for name, p in module.named_parameters():
            w, update = expected[name], p.grad.clone()
            if name == "0.weight":
                trust = 1e-3 * w.norm() / (p.grad.norm() + weight_decay * w.norm())
                update = trust * (p.grad + weight_decay * w)
            buffers[name] = 0.9 * buffers[name] + update
            expected[name] = w - rate * buffers[name]
        optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])


def test_schedule_moves_every_step():
    config = OptimizerConfig(lr=1.0, warmup=0.5, min_lr=0.2)
    optimizer = create_optimizer(parameter_groups(nn.Linear(2, 2), 0), config, batch_size=256)
    schedule = create_schedule(optimizer, config, steps_per_epoch=4, total_steps=6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[6] == pytest.approx(0.2)


def test_only_weights_decay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
    decays, rest = parameter_groups(module, 0.1, exempt={"2.weight"})
    assert [p.shape for p in decays["params"]] == [(4, 3, 3, 3)]
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(rest["params"]) == 5


@pytest.mark.parametrize(
    ("final", "step", "expected"),
    [(None, 0, 0.1), (None, 9, 0.1), (0.5, 0, 0.1), (0.5, 5, 0.3), (0.5, 10, 0.5), (0.0, 20, 0.0)],
)
def test_weight_decay_schedule(final, step, expected):
    config = OptimizerConfig(weight_decay=0.1, final_weight_decay=final)
    assert weight_decay_at(step, config, 10) == pytest.approx(expected)


def test_gradient_norm_is_of_all_parameters():
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert gradient_norm(module) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "optimizer.lr must be positive"),
        ({"lr": float("nan")}, "optimizer.lr must be a number, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"final_weight_decay": -1.0}, "final_weight_decay must be at least 0"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"min_lr": 2.0}, "optimizer.min_lr must be from 0 to 1"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)
