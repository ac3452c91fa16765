"""SigLIPLoss against open_clip's form, its arguments, and what a ring of processes holds."""

import copy
import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mast_ext import functional, losses
from mast_ext.losses import sig_lip

IMAGES, DIM = 12, 10


def open_clip(images, texts, scale, bias):
    """Of one process: ``SigLipLoss`` of open_clip, whose features are normalized before."""
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T + bias
    labels = 2 * torch.eye(len(images), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def inputs(dtype=torch.float32):
    """Images, texts, and what a model learns."""
    torch.manual_seed(0)
    images, texts = torch.randn(2, IMAGES, DIM, dtype=dtype)
    numbers = torch.tensor(6.0, dtype=dtype), torch.tensor(-3.0, dtype=dtype)
    return tuple(t.clone().requires_grad_() for t in (images, texts, *numbers))


def test_equals_open_clip():
    given = inputs()
    exact = [t.detach().double().requires_grad_() for t in given]
    got, want = losses.SigLIPLoss()(*given), open_clip(*exact)
    assert_close(got.double(), want)
    grads = torch.autograd.grad(got, given), torch.autograd.grad(want, exact)
    for mine, truth in zip(*grads, strict=True):
        assert_close(mine.double(), truth, rtol=1e-5, atol=1e-6)


def test_gradient():
    given = inputs(torch.float64)
    for reduction in ("mean", "none"):
        loss = losses.SigLIPLoss(reduction=reduction)
        assert torch.autograd.gradcheck(loss, given)
    learned = losses.SigLIPLoss(2.0, -1.0, learnable=True).double()
    parameters = dict(learned.named_parameters())

    def of_parameters(log_scale, bias):
        return torch.func.functional_call(
            learned, dict(zip(parameters, (log_scale, bias), strict=True)), given[:2]
        )

    assert list(parameters) == ["log_scale", "bias"]
    assert torch.autograd.gradcheck(of_parameters, tuple(parameters.values()))


def test_what_is_learned_starts_at_what_is_given():
    images, texts, *_ = inputs()
    learned = losses.SigLIPLoss(7.0, -2.0, learnable=True)
    assert_close(learned(images, texts), losses.SigLIPLoss(7.0, -2.0)(images, texts))
    assert_close(
        losses.SigLIPLoss()(images, texts, torch.tensor(7.0), -2.0), learned(images, texts)
    )
    assert not list(losses.SigLIPLoss().parameters())
    resumed = losses.SigLIPLoss(learnable=True)
    resumed.load_state_dict(copy.deepcopy(learned.state_dict()))
    assert torch.equal(resumed(images, texts), learned(images, texts))


def test_a_model_in_16_bit_gives_its_own_numbers():
    images, texts, scale, bias = (t.detach().bfloat16() for t in inputs())
    scale.requires_grad_()
    loss = losses.SigLIPLoss()(images, texts, scale, bias)
    loss.backward()
    assert loss.dtype == torch.float32 and scale.grad.dtype == torch.bfloat16
    want = open_clip(*(t.detach().double() for t in (images, texts, scale, bias)))
    assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reductions(dtype):
    images, texts, *_ = (t.detach().to(dtype).requires_grad_() for t in inputs())
    each = losses.SigLIPLoss(reduction="none")(images, texts)
    assert each.shape == (IMAGES,) and each.dtype == torch.float32
    of_mean = torch.autograd.grad(each.mean(), [images, texts], retain_graph=True)
    for reduction in ("mean", "sum"):
        loss = losses.SigLIPLoss(reduction=reduction)(images, texts)
        factor = 1 if reduction == "mean" else IMAGES
        assert_close(loss, getattr(each, reduction)())
        for mine, truth in zip(torch.autograd.grad(loss, [images, texts]), of_mean, strict=True):
            assert_close(mine, truth * factor)


def test_pair_losses_are_of_every_pair():
    views = torch.randn(3, IMAGES, DIM)
    loss = losses.SigLIPLoss()
    pairs = loss.pair_losses(views)
    assert pairs.shape == (3, 3, IMAGES)
    for i in range(3):
        for j in range(3):
            assert_close(pairs[i, j].mean(), loss(views[i], views[j]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logit_scale": 0.0}, "logit_scale must be positive, got 0"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.SigLIPLoss(**arguments)


@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_rejects_what_it_learns_itself(name):
    images, texts, *_ = inputs()
    with pytest.raises(ValueError, match=f"{name} must not be given where it is learned"):
        losses.SigLIPLoss(learnable=True)(images, texts, **{name: 3.0})


def test_rejects_inputs():
    message = r"image_features and text_features must have one shape \[N, D\], got \[2, 3\] and"
    with pytest.raises(ValueError, match=message):
        losses.SigLIPLoss()(torch.ones(2, 3), torch.ones(3, 3))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at once; views count with what they view."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(results):
            if isinstance(t, torch.Tensor) and not t._is_view() and id(t) not in self.known:
                self.known.add(id(t))
                self.now += t.nbytes
                weakref.finalize(t, self.forget, id(t), t.nbytes)
        self.most = max(self.most, self.now)
        return results

    def forget(self, name, size):
        self.known.remove(name)
        self.now -= size


def test_memory_does_not_grow_with_the_number_of_processes(monkeypatch):
    """The other processes' embeddings are this one's here: what a process holds is counted."""
    rows, width = 64, 512
    images, texts = (t.requires_grad_() for t in torch.randn(2, rows, width))
    shifts = []

    def shift(x):
        shifts.append(x.numel())
        received = x.detach().clone()
        return lambda: received

    monkeypatch.setattr(sig_lip, "require_equal_batches", lambda x, dim: None)
    monkeypatch.setattr(sig_lip, "start_ring_shift", shift)
    monkeypatch.setattr(losses.SigLIPLoss, "_many", lambda self: True)
    most, found = {}, {}
    for processes in (4, 9):
        monkeypatch.setattr(sig_lip, "world_size", lambda processes=processes: processes)
        shifts.clear()
        with LiveBytes() as live:
            loss = losses.SigLIPLoss(gather_distributed=True)(images, texts)
            grads = torch.autograd.grad(loss, [images, texts])
        # Keys go around forward and backward, but for the last step; their gradient goes home.
        assert shifts == [rows * width] * (3 * processes - 2)
        most[processes], found[processes] = live.most, grads
        del loss
    of_batch = rows * width * 4
    # Two batches of keys, their gradient coming and going, this block's gradients, and their sum.
    assert 6 * of_batch < most[4] == most[9] < 8 * of_batch
    exact = images.detach().requires_grad_()
    loss = functional.sigmoid_contrast(
        exact, texts.detach(), scale=10.0, bias=-10.0
    ) + 8 * functional.sigmoid_contrast(exact, texts.detach(), scale=10.0, bias=-10.0, offset=None)
    (want,) = torch.autograd.grad(loss.mean(), [exact])
    assert_close(found[9][0], want)
