"""What the classes that lightly has, too, do beyond its: reductions, state, forms, distances."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext import losses, reference

IMAGES, DIM, TOKENS = 8, 10, 5


def two_views():
    return torch.randn(2, IMAGES, DIM).unbind()


def tokens():
    return torch.randn(2, IMAGES, TOKENS, DIM).unbind()


def masked_tokens():
    return *tokens(), torch.rand(IMAGES, TOKENS) > 0.5


def regions():
    return *torch.randn(4, IMAGES, TOKENS, DIM), *torch.randint(0, 4, (2, IMAGES, TOKENS))


PER_IMAGE = {
    "CAPILoss": (losses.CAPILoss, tokens),
    "CO2Regularizer": (losses.CO2Regularizer, two_views),
    "DetConBLoss": (losses.DetConBLoss, regions),
    "DirectCLRLoss": (lambda **options: losses.DirectCLRLoss(4, **options), two_views),
    "IBOTPlusPlusPatchLoss": (lambda **o: losses.IBOTPlusPlusPatchLoss(DIM, **o), tokens),
    "IBOTPlusPlusPatchLoss mask": (
        lambda **o: losses.IBOTPlusPlusPatchLoss(DIM, **o),
        masked_tokens,
    ),
    "MACLLoss": (losses.MACLLoss, two_views),
    "PatchKernelAlignmentLoss": (losses.PatchKernelAlignmentLoss, tokens),
    "GramAnchoringLoss": (losses.GramAnchoringLoss, tokens),
}


@pytest.mark.parametrize("name", PER_IMAGE)
def test_reductions(name):
    torch.manual_seed(0)
    make, inputs = PER_IMAGE[name]
    given = [x.requires_grad_() if x.is_floating_point() else x for x in inputs()]
    each = make(reduction="none")(*given)
    assert each.shape == (IMAGES,)
    assert_close(make()(*given), each.mean())
    assert_close(make(reduction="sum")(*given), each.sum())
    learns = given[0 if name.startswith(("Patch", "Gram")) else 1]
    weights = torch.rand(IMAGES)
    of_each = torch.autograd.grad((each * weights).sum(), learns, retain_graph=True)
    by_hand = sum(
        torch.autograd.grad(each[i], learns, retain_graph=True)[0] * weights[i]
        for i in range(IMAGES)
    )
    assert_close(*of_each, by_hand)
    of_mean = torch.autograd.grad(make()(*given), learns)
    assert_close(*of_mean, torch.autograd.grad(each.mean(), learns)[0])


@pytest.mark.parametrize(
    "name",
    [*PER_IMAGE, "DetConSLoss"],
)
def test_rejects_reductions(name):
    make = PER_IMAGE[name][0] if name in PER_IMAGE else getattr(losses, name)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        make(reduction="max")


@pytest.mark.parametrize("negatives", ["pairs", "all_views"])
def test_macl_of_three_views(negatives):
    views = torch.randn(3, IMAGES, DIM)
    loss = losses.MACLLoss(alpha=0.0, negatives=negatives, reduction="none")
    # Without a moving temperature, NT-Xent weighted by 1 / (1 - p).
    plain = losses.NTXentLoss(0.1, negatives=negatives)
    pairs = loss.pair_losses(views)
    same = torch.eye(3, dtype=torch.bool)
    assert_close(loss(*views), pairs[~same].mean(0))
    two = losses.NTXentLoss(0.1, reduction="none").pair_losses(views)
    assert (pairs >= (two if negatives == "pairs" else plain.pair_losses(views)) - 1e-6).all()


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_macl_of_confident_pairs_keeps_its_digits(distance):
    """``-log p / (1 - p)`` goes to 1, of numbers that float32 cannot tell apart from 0."""
    torch.manual_seed(0)
    first = torch.randn(IMAGES, 64)
    views = torch.stack((first, first + distance * torch.randn_like(first)))
    got = losses.MACLLoss(0.05, reduction="none")(*views)
    want = losses.MACLLoss(0.05, reduction="none")(*views.double())
    assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hypersphere_of_equal_views_has_finite_gradients(alpha):
    x = torch.randn(IMAGES, DIM, requires_grad=True)
    losses.HypersphereLoss(alpha=alpha)(x, x.detach().clone()).backward()
    assert x.grad.isfinite().all()


def test_pair_losses_of_hypersphere_are_its_alignment():
    views = torch.randn(3, IMAGES, DIM)
    pairs = losses.HypersphereLoss(alpha=3.0).pair_losses(views)
    unit = F.normalize(views, dim=2)
    want = (unit[:, None] - unit).norm(dim=3).pow(3)
    assert_close(pairs, want)


def test_det_con_stores_nothing_of_all_regions_by_all():
    images = 160  # of few the operator keeps the products on a CPU
    x = torch.randn(4, images, 4, DIM, requires_grad=True)
    masks = torch.arange(4).expand(2, images, 4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        losses.DetConBLoss()(*x, *masks)
    assert max(sizes) <= 8 * 8 * images * 2 < (4 * images) ** 2


def test_predictions_that_underflow_cost_a_finite_number():
    anchors = torch.eye(DIM).requires_grad_()
    loss = losses.PMSNLoss(1e-3)(anchors, anchors.detach().flip(0), torch.eye(DIM))
    loss.backward()
    assert loss.isfinite() and anchors.grad.isfinite().all()


def test_emp_ssl_of_the_paper_takes_the_coding_rate_off():
    views = [torch.randn(IMAGES, DIM) for _ in range(3)]
    lightly, paper = (losses.EMPSSLLoss(variant=variant)(views) for variant in ("lightly", "paper"))
    invariance = losses.EMPSSLLoss(1e30)(views)  # the coding rate of a large distortion is 0
    assert_close(lightly + paper, 2 * invariance)
    assert lightly > invariance > paper


@pytest.mark.parametrize("name", ["TiCoLoss", "CO2Regularizer"])
def test_training_resumes_with_its_state(name):
    """Which lightly's state_dict does not have."""
    make = {
        "TiCoLoss": losses.TiCoLoss,
        "CO2Regularizer": lambda: losses.CO2Regularizer(memory_bank_size=(20, DIM)),
    }[name]
    loss = make()
    loss(*two_views())
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    views = two_views()
    assert torch.equal(resumed(*views), loss(*views))
    again = make()
    again(*two_views())
    again.load_state_dict(loss.state_dict())
    views = two_views()
    assert torch.equal(again(*views), loss(*views))


def test_tico_without_a_batch_loads_as_such():
    loss = losses.TiCoLoss()
    loss.load_state_dict(losses.TiCoLoss().state_dict())
    assert loss.C is None


def test_whitened_batches_have_unit_covariance():
    x = torch.randn(500, DIM) @ torch.randn(DIM, DIM) + 3
    y = losses.Whitening2d(DIM)(x)
    assert_close(y.mean(0), torch.zeros(DIM), atol=1e-4, rtol=0)
    assert_close(y.T.cov(), torch.eye(DIM), atol=1e-3, rtol=0)


def test_whitening_in_evaluation_uses_its_moving_averages():
    layer = losses.Whitening2d(DIM, momentum=1.0)
    x = torch.randn(50, DIM)
    want = layer(x)
    assert_close(layer.eval()(x), want)
    y = x[:1].clone().requires_grad_()  # one row is enough
    weights = torch.rand(DIM)
    (layer(y)[0] * weights).sum().backward()
    factor = torch.linalg.cholesky(layer.running_variance)
    assert_close(y.grad[0], torch.linalg.solve(factor.T, weights), rtol=1e-4, atol=1e-5)


def test_gradients_against_finite_differences():
    x = torch.randn(12, 4, dtype=torch.double, requires_grad=True)
    layer = losses.Whitening2d(4, eps=0.1, track_running_stats=False)
    assert torch.autograd.gradcheck(layer, x)
    views = torch.randn(4, 3, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(losses.MMCRLoss(0.3), (views, torch.randn_like(views)))
    assert torch.autograd.gradcheck(lambda z: losses.EMPSSLLoss()(z.unbind()), views)


def test_patch_kernels_of_rotated_features_are_aligned():
    teacher = torch.randn(IMAGES, TOKENS, DIM)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM)).Q
    loss = losses.PatchKernelAlignmentLoss()(3 * teacher @ rotation, teacher)
    assert_close(loss, torch.zeros(()), atol=1e-5, rtol=0)


def patch_kernel_misalignment(student, teacher):
    """By the definition, centering the matrices of products."""
    center = torch.eye(student.shape[1]).to(student) - 1 / student.shape[1]
    kernels = (center @ x @ x.mT @ center for x in (student, teacher))
    units = (k / k.norm(dim=(1, 2), keepdim=True).clamp_min(1e-3) for k in kernels)
    return 1 - torch.stack(tuple(units)).prod(0).sum((1, 2))


@pytest.mark.parametrize("shape", [(3, 20, 32), (3, 48, 32), (3, 49, 32)], ids=str)
@pytest.mark.parametrize(("noise", "allowed"), [(1.0, 2e-6), (1e-2, 3e-5), (3e-4, 5e-4)])
def test_nearly_aligned_patch_kernels_keep_their_digits(shape, noise, allowed):
    """A loss of 1e-8, as 1 less the alignment, is nothing but rounding in float32."""
    torch.manual_seed(0)
    teacher = torch.randn(shape)
    student = (2 * teacher + noise * torch.randn(shape)).requires_grad_()
    exact = student.detach().double().requires_grad_()
    loss = losses.PatchKernelAlignmentLoss(reduction="none")(student, teacher)
    truth = patch_kernel_misalignment(exact, teacher.double())
    found, want = (torch.autograd.grad(f.sum(), x)[0] for f, x in ((loss, student), (truth, exact)))
    by_products_of_dimensions = 2 * shape[1] > 3 * shape[2]
    error = 3e-7 if by_products_of_dimensions else allowed * truth.max().item()
    assert (loss.double() - truth).abs().max() < error
    assert (found - want).norm() < max(1e-6, 3e-7 / noise * 4) * want.norm()


@pytest.mark.parametrize("tokens", [6, 60])
def test_patch_kernels_too_small_to_normalize(tokens):
    """Norms below 1e-3 count as that: the loss of equal kernels is 1 less a squared norm."""
    torch.manual_seed(0)
    teacher = torch.randn(3, tokens, 8) * torch.tensor([1.0, 1e-3, 0.0])[:, None, None]
    student = torch.stack((teacher[0], teacher[1], torch.randn(tokens, 8)))
    loss = losses.PatchKernelAlignmentLoss(reduction="none")(student, teacher)
    truth = patch_kernel_misalignment(student.double(), teacher.double())
    assert 0.9 < truth[1] < 1
    assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("DirectCLRLoss", {"loss_dim": 0}, "loss_dim must be at least 1, got 0"),
        ("HypersphereLoss", {"t": 0.0}, "t must be positive, got 0.0"),
        ("EMPSSLLoss", {"tcr_eps": 0.0}, "tcr_eps must be positive, got 0.0"),
        ("EMPSSLLoss", {"variant": "x"}, "variant must be 'lightly' or 'paper', got 'x'"),
        ("CAPILoss", {"sinkhorn_iterations": -1}, "sinkhorn_iterations must be at least 0, got -1"),
        ("WMSELoss", {"num_samples": 1}, "num_samples must be at least 2, got 1"),
    ],
)
def test_rejects_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**arguments)


ONE = torch.ones(2, 3, 4)
MASKS = torch.zeros(2, 2, 3).long()
LOCATED = torch.rand(4, 8), torch.rand(4, 7, 7, 6)  # embeddings and features of a crop


@pytest.mark.parametrize(
    ("make", "inputs", "error", "message"),
    [
        (losses.MSNLoss, (ONE[0], ONE[0][:2], ONE[0]), ValueError, "whole number of views of 2"),
        (losses.MSNLoss, (ONE[0], ONE[0], ONE[0][:, :2]), ValueError, r"prototypes must have"),
        (losses.CAPILoss, (ONE[0], ONE), ValueError, r"teacher_logits must have shape \[B, N, K\]"),
        (losses.CAPILoss, (ONE, ONE[:, :2]), ValueError, r"student_logits .* \[2, 3, 4\], got"),
        (losses.CAPILoss, (ONE, ONE, MASKS[0][:1]), ValueError, r"teacher_index .* \[2, M\], got"),
        (
            lambda: losses.IBOTPlusPlusPatchLoss(4),
            (ONE, ONE, torch.ones(2, 3)),
            TypeError,
            "mask must be bool, got torch.float32",
        ),
        (
            lambda: losses.IBOTPlusPlusPatchLoss(4),
            (ONE, ONE, torch.ones(2, 4).bool()),
            ValueError,
            r"mask must have shape \[2, H, W\] with H·W = 3, or \[2, 3\], got \[2, 4\]",
        ),
        (losses.DetConSLoss, (ONE, ONE[:1], *MASKS), ValueError, r"one shape \[B, M, D\]"),
        (
            losses.DetConSLoss,
            (ONE, ONE, *MASKS[..., :2]),
            ValueError,
            r"mask_view0 must have shape",
        ),
        (losses.EMPSSLLoss, ([],), ValueError, r"z_views must hold views of one shape"),
        (lambda: losses.Whitening2d(3), (ONE[0],), ValueError, r"x must have shape \[N, 3\]"),
        (losses.VICRegLLoss, ([(ONE[0], ONE[None])], [ONE[None]]), ValueError, "another crop"),
        *[
            (losses.VICRegLLoss, ([crop, crop], [grid, grid]), ValueError, message)
            for crop, grid, message in (
                (LOCATED, torch.rand(4, 5, 5, 2), r"view_grids \[B, H, W, 2\]"),
                (LOCATED, torch.rand(4, 7, 7, 3), r"view_grids \[B, H, W, 2\]"),
                (LOCATED, torch.rand(2, 7, 7, 2), r"view_grids \[B, H, W, 2\]"),
                ((LOCATED[0], LOCATED[1].mT), torch.rand(4, 7, 7, 2), "features"),
                (LOCATED[1], torch.rand(4, 7, 7, 2), "pairs"),
            )
        ],
        (lambda: losses.MACLLoss(alpha=1.0), (ONE[0], -ONE[0]), ValueError, "temperature must be"),
    ],
)
def test_rejects_inputs(make, inputs, error, message):
    with pytest.raises(error, match=message):
        make()(*inputs)


def sigreg_of(views, slices, interval, t_max, knots=17):
    """SIGReg of one sample ``[N, D]``, as its formula stands, in float64."""
    return reference.sliced_characteristic_distance(
        views.double()[None], slices.double(), knots=knots, t_max=t_max, interval=interval
    )[0]


def slices_of(generator, dim, count):
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)


@pytest.mark.parametrize(("interval", "t_max"), [("half", 3.0), ("symmetric", 5.0)])
def test_sigreg_over_another_interval(interval, t_max):
    views = torch.randn(2, IMAGES, DIM)
    loss = losses.SIGReg(interval=interval, t_max=t_max, num_vectors=40)
    torch.manual_seed(1)
    found = loss(views)
    slices = slices_of(torch.Generator().manual_seed(1), DIM, 40)
    want = sum(sigreg_of(view, slices, interval, t_max) for view in views) / 2
    assert_close(found.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda **grid: losses.SIGReg(num_vectors=9, seed=1, **grid),
        lambda **grid: losses.LeJEPALoss(
            sigreg_seed=1, **{f"sigreg_{name}": value for name, value in grid.items()}
        ),
    ],
)
def test_a_loaded_grid_is_integrated_on(make):
    """As lightly's, whose checkpoints have it, too."""
    views = torch.randn(2, IMAGES, DIM)
    sigreg = isinstance(make(), losses.SIGReg)
    given = {"proj": views} if sigreg else {"local_proj": views, "global_proj": views}
    for grid in ({"t_max": 5.0}, {"interval": "symmetric", "t_max": 2.0, "knots": 33}):
        saved, loss = make(**grid), make()
        assert not torch.allclose(saved(**given), loss(**given))
        saved, loss = make(**grid), make()  # from the first call on
        loss.load_state_dict(saved.state_dict())
        assert_close(loss(**given), saved(**given))


def test_a_loaded_grid_that_is_rounded_is_the_own_one():
    loss, saved = losses.SIGReg(t_max=4.7), losses.SIGReg(t_max=4.7).bfloat16()
    loss.load_state_dict({**loss.state_dict(), "t": saved.t})
    assert (loss.t_min, loss.t_max) == (0.0, 4.7)
    other = losses.SIGReg(t_max=4.7)
    other.load_state_dict({**loss.state_dict(), "t": torch.linspace(0, 4.5, 17).bfloat16()})
    assert (other.t_min, other.t_max) == (0.0, 4.5)


def test_sigreg_of_pooled_views():
    views = torch.randn(3, IMAGES, DIM)
    torch.manual_seed(1)
    found = losses.SIGReg(pooled=True)(views)
    torch.manual_seed(1)
    assert_close(found, losses.SIGReg()(views.flatten(0, 1)))


def test_seeded_sigreg_goes_on_where_it_was():
    """By the number of the call, whatever torch's own generator does."""
    x = torch.randn(IMAGES, DIM)
    first, second = (losses.SIGReg(num_vectors=5, seed=3) for _ in range(2))
    torch.manual_seed(0)
    values = [first(x) for _ in range(3)]
    assert len({value.item() for value in values}) == 3
    assert torch.equal(second(x), values[0])
    second.load_state_dict(first.state_dict())
    torch.manual_seed(5)
    assert torch.equal(second(x), first(x))
    second.load_state_dict(losses.SIGReg(num_vectors=5).state_dict(), strict=False)
    with pytest.raises(RuntimeError, match='Missing key.*"calls"'):
        second.load_state_dict(losses.SIGReg(num_vectors=5).state_dict())


def test_validation_does_not_change_the_directions_of_training():
    x = torch.randn(IMAGES, DIM)
    first, second = (losses.SIGReg(num_vectors=5, seed=3) for _ in range(2))
    first.eval()(x)
    assert torch.equal(first.train()(x), second(x))


def test_seeded_sigreg_compiles_once():
    torch.compiler.reset()
    x = torch.randn(IMAGES, DIM)
    compiled = torch.compile(losses.SIGReg(num_vectors=5, seed=3), backend="eager")
    want = losses.SIGReg(num_vectors=5, seed=3)
    for _ in range(12):
        assert_close(compiled(x), want(x))


def test_weights_of_lejepa():
    views = {"global_proj": torch.randn(2, IMAGES, DIM), "local_proj": torch.randn(3, IMAGES, DIM)}
    every = torch.cat((views["global_proj"], views["local_proj"]))
    invariance = (every - views["global_proj"].mean(0)).square().mean()
    for given, weight in ((None, 0.7), (1.0, 1.0), (0.0, 0.0)):
        loss = losses.LeJEPALoss(0.3, sigreg_seed=1, invariance_weight=given)
        want = 0.3 * losses.SIGReg(seed=1)(every) + weight * invariance
        assert_close(loss(**views), want)


def test_every_view_counts_in_lejepa():
    """Each moves the loss, in both of its terms."""
    views = torch.randn(4, IMAGES, DIM, requires_grad=True)
    for weights in ({"lambda_param": 1.0}, {"lambda_param": 0.0}):
        loss = losses.LeJEPALoss(**weights)(global_proj=views[:2], local_proj=views[2:])
        (grad,) = torch.autograd.grad(loss, views)
        assert grad.abs().sum((1, 2)).gt(0).all()


@pytest.mark.parametrize("name", ["LeJEPALoss", "LeWMLoss"])
def test_options_of_sigreg_reach_it(name):
    loss = getattr(losses, name)(
        sigreg_interval="symmetric", sigreg_pooled=True, sigreg_seed=4, sigreg_t_max=5.0
    )
    assert len(loss.sigreg.t) == 9 and loss.sigreg.pooled and loss.sigreg.seed == 4
