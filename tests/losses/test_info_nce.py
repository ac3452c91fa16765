"""InfoNCELoss against cross-entropy over the whole matrix of similarities."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext.losses import InfoNCELoss

BATCH, DIM, QUEUE = 9, 7, 13
FORMS = ["one_sided", "two_sided", "negatives"]


def make_inputs(form, device, dtype=torch.float32, batch=BATCH):
    queries = torch.randn(batch, DIM, device=device)
    keys = queries + torch.randn(batch, DIM, device=device)
    inputs = [queries, keys, torch.randn(QUEUE, DIM, device=device)]
    inputs = [t.to(dtype).requires_grad_() for t in inputs]
    return inputs if form == "negatives" else inputs[:2]


def make_loss(form, temperature=0.3, **options):
    return InfoNCELoss(temperature, two_sided=form == "two_sided", **options)


def formula(form, inputs, temperature):
    """Loss of every query."""
    queries, keys, *negatives = (F.normalize(t, dim=1) for t in inputs)
    logits = queries @ keys.T / temperature
    target = torch.arange(len(queries), device=queries.device)
    if form == "negatives":
        positive = (queries * keys).sum(1, keepdim=True) / temperature
        logits = torch.cat([positive, queries @ negatives[0].T / temperature], 1)
        target = torch.zeros_like(target)
    each = F.cross_entropy(logits, target, reduction="none")
    return (
        each
        if form != "two_sided"
        else (each + F.cross_entropy(logits.T, target, reduction="none")) / 2
    )


def exact(inputs):
    return [t.detach().cpu().double().requires_grad_() for t in inputs]


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_cross_entropy(form, learn, device):
    loss = make_loss(form, learn_temperature=learn).to(device)
    inputs = make_inputs(form, device)
    leaves = [*inputs, *loss.parameters()]
    truths = exact(inputs)
    temperature = torch.tensor(0.3, dtype=torch.float64)
    if learn:
        log_temperature = temperature.log().requires_grad_()
        truths.append(log_temperature)
        temperature = log_temperature.exp()
    got, want = loss(*inputs), formula(form, truths[: len(inputs)], temperature).mean()
    assert_close(got.cpu().double(), want, rtol=1e-5, atol=0)
    for mine, truth in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(want, truths), strict=True
    ):
        assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_reductions(form, device):
    inputs = make_inputs(form, device)
    want = formula(form, inputs, 0.3)
    each = make_loss(form, reduction="none")(*inputs)
    assert_close(each, want, rtol=1e-5, atol=4e-6)
    assert_close(make_loss(form, reduction="sum")(*inputs), each.sum())


def test_keys_of_a_momentum_encoder_get_no_gradient(device):
    queries, keys = make_inputs("one_sided", device)
    want = torch.autograd.grad(formula("one_sided", [queries, keys], 0.3).mean(), queries)[0]
    (grad,) = torch.autograd.grad(make_loss("one_sided")(queries, keys.detach()), queries)
    assert_close(grad, want, rtol=1e-4, atol=1e-6)


def test_a_learned_temperature_stays_above_0_01(device):
    """As in CLIP; and from there it rises again where pairs do not agree."""
    queries = torch.randn(6, DIM, device=device)
    loss = InfoNCELoss(0.05, two_sided=True, learn_temperature=True).to(device)
    with torch.no_grad():
        loss.log_temperature.fill_(math.log(1e-4))
    value = loss(queries, queries.flip(0))
    assert_close(value, InfoNCELoss(0.01, two_sided=True)(queries, queries.flip(0)))
    value.backward()
    assert loss.temperature.item() == pytest.approx(0.01, rel=1e-5)
    assert loss.log_temperature.grad < 0


def test_a_penalty_of_the_learned_temperature_may_come_first(device):
    """The loss keeps the parameter in its bounds, which must not undo what was made of it."""
    queries, keys = torch.randn(2, 6, DIM, device=device)
    loss = InfoNCELoss(0.05, learn_temperature=True).to(device)
    penalty = loss.log_temperature.square()
    (loss(queries, keys) + penalty).backward()
    assert loss.log_temperature.grad.isfinite()


def test_a_learned_temperature_is_the_only_parameter():
    start = torch.nn.Parameter(torch.tensor(0.2))
    loss = InfoNCELoss(start, learn_temperature=True)
    assert [name for name, _ in loss.named_parameters()] == ["log_temperature"]


def test_temperature(device):
    assert InfoNCELoss(0.07).temperature == 0.07
    learned = InfoNCELoss(0.07, learn_temperature=True).to(device)
    assert learned.temperature.item() == pytest.approx(0.07)
    assert list(learned.state_dict()) == ["log_temperature"]
    assert learned.log_temperature.item() == pytest.approx(math.log(0.07))
    assert not InfoNCELoss(0.07).state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_pair_losses_are_those_of_forward(form, device):
    loss = make_loss(form, reduction="none", learn_temperature=True).to(device)
    views = torch.randn(3, BATCH, DIM, device=device)
    negatives = make_inputs(form, device)[2:]
    pairs = loss.pair_losses(views, *negatives)
    assert pairs.shape == (3, 3, BATCH)
    for i in range(3):
        for j in range(3):
            want = loss(views[i], views[j], *negatives)
            assert_close(pairs[i, j], want, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_16_bit(form, dtype, device):
    loss = make_loss(form, learn_temperature=True).to(device)
    inputs = make_inputs(form, device, dtype)
    got = loss(*inputs)
    assert got.dtype == torch.float32
    assert_close(got.cpu().double(), formula(form, exact(inputs), 0.3).mean(), rtol=1e-5, atol=0)
    assert torch.autograd.grad(got, inputs[0])[0].dtype == dtype
    loss.to(dtype)  # the temperature itself in 16 bits
    assert_close(loss(*inputs), got, rtol=2e-2, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_float64_gradients(form):
    loss = make_loss(form, learn_temperature=True).double()
    inputs = make_inputs(form, "cpu", torch.float64, batch=4)

    def function(log_temperature, *inputs):
        return torch.func.functional_call(loss, {"log_temperature": log_temperature}, inputs)

    log_temperature = loss.log_temperature.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (log_temperature, *inputs))


@pytest.mark.parametrize("form", FORMS)
def test_one_image(form, device):
    inputs = make_inputs(form, device, batch=1)
    got = make_loss(form)(*inputs)
    assert_close(got, formula(form, inputs, 0.3).mean(), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(got, inputs[0])[0].isfinite().all()


def test_no_negatives_at_all(device):
    queries, keys = make_inputs("one_sided", device)
    got = InfoNCELoss()(queries, keys, queries.new_empty(0, DIM))
    assert got == 0
    assert torch.autograd.grad(got, queries)[0].isfinite().all()


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole(form, learn, device):
    loss = make_loss(form, learn_temperature=learn).to(device)
    inputs = make_inputs(form, device)
    want = loss(*inputs)
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    assert_close(got, want)
    leaves = [*inputs, *loss.parameters()]
    for mine, truth in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True
    ):
        assert_close(mine, truth)


@pytest.mark.parametrize(
    ("form", "shapes", "message"),
    [
        ("one_sided", [(3, 4), (3, 5)], r"queries and keys must have one shape \[N, D\], got "),
        ("two_sided", [(3, 4), (2, 4)], r"queries and keys must have one shape \[N, D\], got "),
        (
            "one_sided",
            [(3, 4), (3, 4), (6, 5)],
            r"negatives must have shape \[M, 4\], got \[6, 5\]",
        ),
        ("one_sided", [(3, 4), (3, 4), (6,)], r"negatives must have shape \[M, 4\], got \[6\]"),
        ("two_sided", [(3, 4), (3, 4), (6, 4)], "negatives cannot be given with two_sided=True"),
    ],
)
def test_rejects_shapes(form, shapes, message):
    with pytest.raises(ValueError, match=message):
        make_loss(form)(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"temperature": 0.005, "learn_temperature": True}, "must start at 0.01 or above"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfoNCELoss(**arguments)
