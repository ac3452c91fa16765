"""Every class of the installed lightly.loss against ours: arguments, values, gradients, state.

The truth is lightly's class in float64, with the same random draws. A class that lightly has and we
do not fails by its name.
"""

import copy
import importlib
import inspect
import operator
import pkgutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import lightly.loss
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_map

from mast_ext import losses

BATCH, DIM, PROTOTYPES, TOKENS, REGIONS = 12, 10, 24, 9, 4

RESULTS = {"VISRegLossComponents"}  # a tuple
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(lightly.loss.__path__, "lightly.loss.")
]
THEIRS = {
    name: kind
    for module in MODULES
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and kind.__module__ == module.__name__
}


def randn(*shape):
    return torch.randn(shape, requires_grad=True)


def fixed(*shape):
    return torch.randn(shape)


def two_views(*shape):
    x = randn(*(shape or (BATCH, DIM)))
    return x, (x + 0.5 * torch.randn(x.shape)).detach().requires_grad_()


def msn():
    return randn(3 * BATCH, DIM), fixed(BATCH, DIM), randn(PROTOTYPES, DIM)


def crops():
    return [fixed(BATCH, DIM) for _ in range(2)], [randn(BATCH, DIM) for _ in range(4)]


def masked_patches():
    mask = torch.rand(BATCH, 3, 3) > 0.5
    return fixed(int(mask.sum()), DIM), randn(int(mask.sum()), DIM), mask


def patches():
    return fixed(BATCH, TOKENS, DIM), randn(BATCH, TOKENS, DIM)


def patches_and_mask():
    mask = torch.rand(BATCH, 3, 3) > 0.5
    mask[0] = False
    mask[1] = True
    return *patches(), mask


def flat_patches_and_mask():
    teacher, student, mask = patches_and_mask()
    return teacher.flatten(0, 1), student.detach().flatten(0, 1).requires_grad_(), mask.flatten(1)


def clusters():
    """Logits of which none is so small that lightly's 1e-8 is felt."""
    return 0.2 * fixed(BATCH, TOKENS, DIM), randn(BATCH, TOKENS, DIM)


def predicted_clusters():
    index = torch.rand(BATCH, TOKENS).argsort(1)[:, :5]
    return clusters()[0], randn(BATCH, 5, DIM), index


def regions(embeddings):
    masks = [torch.randint(0, 6, (BATCH, REGIONS)) for _ in range(2)]
    return *(randn(BATCH, REGIONS, DIM) for _ in range(embeddings)), *masks


def located_crops(local):
    def features(size):
        return [(randn(BATCH, DIM), randn(BATCH, size, size, 6)) for _ in range(2)]

    def grids(size):
        return [torch.rand(BATCH, size, size, 2) for _ in range(2)]

    return features(5), grids(5), *((features(3), grids(3)) if local else ())


def attribute(*names):
    """State by its names."""
    return lambda loss: [operator.attrgetter(name)(loss) for name in names]


BANK = attribute("memory_bank.bank", "memory_bank.bank_ptr")
CENTER = attribute("center.value")


BANK = attribute("memory_bank.bank", "memory_bank.bank_ptr")
CENTER = attribute("center.value")


def list_of_views(number, *shape):
    return lambda: ([randn(*shape) for _ in range(number)],)


def many_views():
    return randn(BATCH, 3, DIM), randn(BATCH, 3, DIM)


def features(tokens, dim, mask=False):
    def make():
        masked = torch.rand(BATCH, tokens) > 0.6
        masked[0], masked[1, 1:] = True, True  # too few tokens
        given = randn(BATCH, tokens, dim), fixed(BATCH, tokens, dim)
        return (*given, masked) if mask else given

    return make


@dataclass
class Case:
    """Arguments of the constructor, inputs (by name in a dict), and state after two calls."""

    arguments: dict[str, Any]
    inputs: Callable[[], tuple[Any, ...] | dict[str, Any]]
    state: Callable[[nn.Module], list[torch.Tensor]] = lambda loss: []
    options: Callable[[], dict[str, Any]] = dict  # of the call


def global_and_local(images=BATCH, dim=DIM):
    return {"global_proj": randn(2, images, dim), "local_proj": randn(3, images, dim)}


def clips():
    predicted, target, every = randn(BATCH, 3, DIM), fixed(BATCH, 3, DIM), randn(BATCH, 4, DIM)
    return {"predicted": predicted, "target": target, "embeddings": every}


GRID = {"sigreg_knots": 9, "sigreg_t_max": 5.0, "sigreg_num_vectors": 30}


def even(mean):
    return mean.new_ones(len(mean)) / len(mean)


def squared(mean):
    return mean.square() / mean.square().sum()


def in_order(x, y):
    """A loss that tells images apart."""
    return ((x - y).square().sum(1) * torch.arange(len(x))).mean()


RUNNING = attribute("running_mean", "running_variance")
WHITENING = attribute("whitening.running_mean", "whitening.running_variance")

CASES: dict[str, list[Case]] = {
    "BarlowTwinsLoss": [Case({}, two_views)],
    "CAPILoss": [
        Case({}, clusters),
        Case({}, predicted_clusters),
        Case(
            {"teacher_temperature": 0.5, "student_temperature": 0.3, "sinkhorn_iterations": 1},
            predicted_clusters,
        ),
    ],
    "CO2Regularizer": [
        Case({}, two_views),
        Case({"alpha": 0.3, "t_consistency": 0.5}, two_views),
        Case({"memory_bank_size": (20, DIM)}, two_views, BANK),
    ],
    "DCLLoss": [Case({}, two_views)],
    "DCLWLoss": [Case({}, two_views)],
    "DINOLoss": [Case({"output_dim": DIM}, crops, attribute("center"))],
    "DetConBLoss": [
        Case({}, lambda: regions(4)),
        Case({"temperature": 0.5, "gather_distributed": False}, lambda: regions(4)),
    ],
    "DetConSLoss": [Case({}, lambda: regions(2)), Case({"temperature": 0.5}, lambda: regions(2))],
    "DirectCLRLoss": [
        Case({"loss_dim": 6}, two_views),
        Case({}, lambda: two_views(BATCH, 40, 2)),
        Case({"loss_dim": 4, "temperature": 0.1, "memory_bank_size": (20, 4)}, two_views, BANK),
    ],
    "HypersphereLoss": [
        Case({}, two_views),
        Case({"t": 3.0, "lam": 0.4, "alpha": 1.0}, two_views),
        Case({"alpha": 3.0}, two_views),
    ],
    "IBOTPatchLoss": [Case({"output_dim": DIM}, masked_patches, CENTER)],
    "IBOTPlusPlusPatchLoss": [
        Case({"output_dim": DIM}, patches, CENTER),
        Case({"output_dim": DIM}, patches_and_mask, CENTER),
        Case(
            {"output_dim": DIM, "teacher_temp": 0.3, "center_momentum": 0.5},
            flat_patches_and_mask,
            CENTER,
            lambda: {"teacher_temp": 0.2, "visible_loss_weight": 0.3},
        ),
    ],
    "KoLeoLoss": [Case({}, lambda: (randn(BATCH, DIM),))],
    "LeJEPALoss": [
        Case({}, global_and_local),
        Case({"lambda_param": 0.4} | GRID, global_and_local),
    ],
    "LeWMLoss": [
        Case({}, clips),
        Case({"lambda_param": 2.0, "normalize": True} | GRID, clips),
    ],
    "MACLLoss": [
        Case({}, two_views),
        Case({"temperature": 0.5, "alpha": 1.0, "A_0": 0.3}, two_views),
        Case({"alpha": 0.0}, two_views),
    ],
    "MSNLoss": [
        Case({}, msn),
        Case({"sinkhorn_iterations": 0, "regularization_weight": 0.0}, msn),
        Case(
            {"temperature": 0.3, "sinkhorn_iterations": 1, "regularization_weight": 2.0},
            msn,
            options=lambda: {"target_sharpen_temperature": 0.5},
        ),
    ],
    "NTXentLoss": [Case({}, two_views), Case({"memory_bank_size": (20, DIM)}, two_views, BANK)],
    "NegativeCosineSimilarity": [Case({}, two_views)],
    "PMSNCustomLoss": [
        Case({"target_distribution": even}, msn),
        Case({"target_distribution": squared, "regularization_weight": 3.0}, msn),
    ],
    "PMSNLoss": [Case({}, msn), Case({"power_law_exponent": 1.5}, msn)],
    "SIGReg": [
        Case({}, lambda: (randn(BATCH, DIM),), attribute("t", "phi", "weights")),
        Case({"knots": 5, "t_max": 2.0, "num_vectors": 3}, lambda: (randn(2, 3, BATCH, DIM),)),
    ],
    "SwaVLoss": [Case({}, lambda: ([randn(BATCH, DIM), randn(BATCH, DIM)], [randn(BATCH, DIM)]))],
    "VICRegLLoss": [
        Case({}, lambda: located_crops(True)),
        Case({}, lambda: located_crops(False)),
        Case(
            {"lambda_param": 3.0, "mu_param": 5.0, "nu_param": 2.0, "alpha": 0.3, "eps": 0.01}
            | {"num_matches": (6, -1)},
            lambda: located_crops(True),
        ),
    ],
    "VICRegLoss": [Case({}, two_views)],
    "VISRegLoss": [
        Case({}, global_and_local),
        Case(
            {"lambda_param": 0.3, "num_slices": 20, "lambda_scale": 2.0, "lambda_shape": 3.0}
            | {"lambda_center": 0.5, "eps": 0.1},
            global_and_local,
        ),
    ],
    "DSERegularizer": [
        Case({}, lambda: (randn(10, 16, 6),)),
        Case(
            {"weight": 0.3, "normalize": False, "local_clusters": 2, "global_clusters": 5}
            | {"max_kmeans_iters": 2, "tol": 0.5},
            lambda: (randn(5, 9, 20),),
        ),
    ],
    "EMPSSLLoss": [
        Case({}, list_of_views(4, BATCH, DIM)),
        Case({"tcr_eps": 1.5, "inv_coef": 3.0}, list_of_views(3, 5, 20)),
    ],
    "FroSSLLoss": [
        Case({}, list_of_views(2, BATCH, DIM)),
        Case({"invariance_weight": 0.2}, list_of_views(3, 5, 20)),
    ],
    "MMCRLoss": [
        Case({}, many_views),
        Case({"lmda": 0.5}, lambda: (randn(30, 1, 7), randn(30, 1, 7))),
    ],
    "PatchKernelAlignmentLoss": [
        Case({}, features(9, 20)),
        Case({}, features(20, 9)),
        Case({}, features(9, 20, mask=True)),
        Case({}, features(20, 9, mask=True)),
        Case({"max_tokens": 6}, features(20, 9, mask=True)),
        Case({"max_tokens": 15}, features(20, 9)),
    ],
    "TiCoLoss": [
        Case({}, two_views, attribute("C")),
        Case({"beta": 0.3, "rho": 20.0}, two_views, attribute("C")),
        Case({}, two_views, options=lambda: {"update_covariance_matrix": False}),
    ],
    "WMSELoss": [
        Case({"embedding_dim": 5, "w_size": 16}, lambda: (randn(2 * 32, 5),), WHITENING),
        Case(
            {"embedding_dim": 5, "w_size": 10, "num_samples": 3, "w_iter": 2, "momentum": 0.3}
            | {"eps": 0.2, "loss_fn": in_order},
            lambda: (randn(3 * 20, 5),),
            WHITENING,
        ),
        Case(
            {"embedding_dim": 5, "w_size": 16, "track_running_stats": False},
            lambda: (randn(2 * 16, 5),),
        ),
    ],
    "Whitening2d": [
        Case({"num_features": DIM}, lambda: (randn(40, DIM),), RUNNING),
        Case({"num_features": DIM, "eps": 0.5, "momentum": 0.5}, lambda: (randn(6, DIM),), RUNNING),
        Case(
            {"num_features": DIM, "eps": 0.5, "track_running_stats": False},
            lambda: (randn(6, DIM),),
        ),
    ],
}
# How many patches a cluster has is not known to a compiler.
NOT_COMPILED_WHOLE = ["DSERegularizer"]
COMPILED_ELSEWHERE = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "KoLeoLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SwaVLoss",
    "VICRegLoss",
]
EACH = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


def make(kind, case, dtype=torch.float32):
    torch.manual_seed(1)  # memory banks
    return kind(**case.arguments).to(dtype)


def call(loss, given, **options):
    return loss(**given, **options) if isinstance(given, dict) else loss(*given, **options)


draw = torch.randn


def float32_randn(*shape, dtype=None, **options):
    """The same random numbers for every dtype."""
    return draw(*shape, **options).to(dtype)


def results(loss, case, inputs, dtype):
    """The values of two calls, the gradients of the second, and the state."""

    def own(x):
        return x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x

    given = tree_map(own, inputs)
    torch.manual_seed(2)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch, "randn", float32_randn)
        values = [call(loss, given, **case.options()) for _ in range(2)]
    leaves = [x for x in tree_flatten(given)[0] if x.requires_grad]
    # Not the plain sum: that of whitened numbers is 0.
    weights = torch.arange(1, values[1].numel() + 1).view(values[1].shape).to(values[1])
    gradients = torch.autograd.grad((values[1] * weights).sum(), leaves)
    return [value.detach().squeeze() for value in values], gradients, case.state(loss)


def truth(name, case, inputs):
    """Lightly's in float64."""
    loss = make(THEIRS[name], case, torch.float64)
    patch = nullcontext()
    if name == "CO2Regularizer":  # returns a copy without a gradient, by torch.tensor
        patch = pytest.MonkeyPatch.context()
    with patch as found:
        if found is not None:
            found.setattr(torch, "tensor", lambda x: x)
        return results(loss, case, inputs, torch.float64)


def assert_near(mine, theirs, rtol):
    assert mine.shape == theirs.shape
    mine, theirs = mine.double(), theirs.double()
    scale = max(theirs.abs().max().item(), 1e-3) if theirs.numel() else 1.0
    assert_close(mine, theirs, rtol=0, atol=rtol * scale)


def test_every_class_is_here():
    missing = sorted(THEIRS.keys() - {*losses.__all__})
    assert not missing, f"lightly.loss has them, mast_ext.losses does not: {missing}"
    untested = sorted(THEIRS.keys() - RESULTS - CASES.keys())
    assert not untested, f"not compared with lightly's: {untested}"


@pytest.mark.parametrize("name", CASES)
def test_same_arguments(name):
    for method in ("__init__", "forward"):
        mine, theirs = (
            inspect.signature(getattr(kind, method)).parameters
            for kind in (getattr(losses, name), THEIRS[name])
        )
        for ours, argument in zip(mine.values(), theirs.values(), strict=False):
            assert ours.name == argument.name
            if inspect.isfunction(argument.default):
                assert callable(ours.default)
            else:
                assert ours.default == argument.default
        added = list(mine.values())[len(theirs) :]
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        assert len(mine) >= len(theirs) and all(each.kind in kinds for each in added)


@pytest.mark.parametrize(("name", "case"), EACH)
def test_same_values_gradients_and_state(name, case):
    torch.manual_seed(0)
    inputs = case.inputs()
    got = results(make(getattr(losses, name), case), case, inputs, torch.float32)
    for mine, theirs in zip(got, truth(name, case, inputs), strict=True):
        for ours, want in zip(mine, theirs, strict=True):
            assert_near(ours, want, 1e-5)


@pytest.mark.parametrize(("name", "case"), EACH)
def test_float64(name, case):
    """Nothing is lost to float32 on the way."""
    torch.manual_seed(0)
    inputs = case.inputs()
    got = results(make(getattr(losses, name), case, torch.float64), case, inputs, torch.float64)
    for mine, theirs in zip(got[:2], truth(name, case, inputs)[:2], strict=True):
        for ours, want in zip(mine, theirs, strict=True):
            assert ours.dtype == torch.float64
            assert_near(ours, want, 1e-6)


# Arguments that lightly rejects, and the type of its error.
ARGUMENTS = [
    ("CAPILoss", {"gather_distributed": True}, None),
    ("CO2Regularizer", {"memory_bank_size": 5}, ValueError),
    ("DetConBLoss", {"temperature": 0.0}, ValueError),
    ("DetConSLoss", {"temperature": 0.0}, ValueError),
    ("DirectCLRLoss", {"memory_bank_size": 5}, ValueError),
    ("LeJEPALoss", {"lambda_param": 1.5}, ValueError),
    ("LeJEPALoss", {"lambda_param": -0.1}, ValueError),
    ("LeJEPALoss", {"gather_distributed": True}, None),
    ("LeJEPALoss", {"sigreg_knots": 1}, ValueError),
    ("LeWMLoss", {"lambda_param": -0.1}, ValueError),
    ("LeWMLoss", {"sigreg_num_vectors": 0}, ValueError),
    ("MACLLoss", {"temperature": 0.0}, ValueError),
    ("MACLLoss", {"alpha": 1.5}, ValueError),
    ("MACLLoss", {"A_0": -0.1}, ValueError),
    ("MSNLoss", {"temperature": 0.0}, ValueError),
    ("MSNLoss", {"sinkhorn_iterations": -1}, ValueError),
    ("PMSNLoss", {"temperature": 0.0}, ValueError),
    ("SIGReg", {"knots": 1}, ValueError),
    ("SIGReg", {"t_max": 0.0}, ValueError),
    ("SIGReg", {"num_vectors": 0}, ValueError),
    ("VISRegLoss", {"lambda_param": 1.1}, ValueError),
    ("VISRegLoss", {"num_slices": 0}, ValueError),
    ("VISRegLoss", {"lambda_scale": -1.0}, ValueError),
    ("VISRegLoss", {"lambda_shape": -1.0}, ValueError),
    ("VISRegLoss", {"lambda_center": -1.0}, ValueError),
    ("VISRegLoss", {"eps": 0.0}, ValueError),
    ("DSERegularizer", {"weight": -1.0}, ValueError),
    ("DSERegularizer", {"tol": 0.0}, ValueError),
    ("DSERegularizer", {"local_clusters": 0}, ValueError),
    ("MMCRLoss", {"lmda": -1.0}, ValueError),
    ("PatchKernelAlignmentLoss", {"max_tokens": 1}, ValueError),
    ("WMSELoss", {"embedding_dim": 8, "w_size": 15}, ValueError),
]


@pytest.mark.parametrize(("name", "arguments", "error"), ARGUMENTS)
def test_same_errors_of_arguments(name, arguments, error):
    for kind in (getattr(losses, name), THEIRS[name]):
        with pytest.raises(error) if error else nullcontext():
            kind(**arguments)


# Inputs that lightly rejects, and the type of its error.
INPUTS = [
    *(
        (name, {}, lambda changed=changed: global_and_local(4, 3) | changed, ValueError)
        for name in ("LeJEPALoss", "VISRegLoss")
        for changed in (
            {"global_proj": fixed(4, 3)},
            {"local_proj": fixed(4, 3)},
            {"local_proj": fixed(3, 5, 3)},
        )
    ),
    (
        "LeJEPALoss",
        {},
        lambda: global_and_local() | {"global_proj": fixed(0, BATCH, DIM)},
        ValueError,
    ),
    (
        "LeJEPALoss",
        {},
        lambda: global_and_local() | {"local_proj": fixed(0, BATCH, DIM)},
        ValueError,
    ),
    ("VISRegLoss", {}, lambda: global_and_local(1), ValueError),
    ("LeWMLoss", {}, lambda: clips() | {"embeddings": fixed(BATCH, DIM)}, ValueError),
    ("LeWMLoss", {}, lambda: clips() | {"embeddings": fixed(5, 4, DIM)}, ValueError),
    ("LeWMLoss", {}, lambda: clips() | {"embeddings": fixed(BATCH, 4, 3)}, ValueError),
    ("LeWMLoss", {}, lambda: clips() | {"target": fixed(BATCH, 4, DIM)}, ValueError),
    ("FroSSLLoss", {}, lambda: ([fixed(4, 3)],), ValueError),
    ("MMCRLoss", {}, lambda: (fixed(4, 2, 3), fixed(4, 3, 3)), AssertionError),
    ("TiCoLoss", {}, lambda: (fixed(1, 3), fixed(1, 3)), AssertionError),
    ("TiCoLoss", {}, lambda: (fixed(4, 3), fixed(4, 5)), AssertionError),
    ("WMSELoss", {"embedding_dim": 2, "w_size": 4}, lambda: (fixed(9, 2),), RuntimeError),
    ("WMSELoss", {"embedding_dim": 2, "w_size": 4}, lambda: (fixed(6, 2),), ValueError),
    ("WMSELoss", {"embedding_dim": 2, "w_size": 4}, lambda: (fixed(12, 2),), RuntimeError),
    ("PatchKernelAlignmentLoss", {}, lambda: (fixed(4, 3), fixed(4, 3)), ValueError),
    ("PatchKernelAlignmentLoss", {}, lambda: (fixed(2, 4, 3), fixed(2, 4, 2)), ValueError),
    ("PatchKernelAlignmentLoss", {}, lambda: (*features(4, 3)(), torch.ones(2, 4)), ValueError),
    ("DSERegularizer", {}, lambda: (fixed(4, 3),), ValueError),
    ("DSERegularizer", {}, lambda: (fixed(0, 4, 3),), ValueError),
    ("IBOTPlusPlusPatchLoss", {}, lambda: (fixed(2, 3, 4), fixed(2, 4, 4)), ValueError),
    ("IBOTPlusPlusPatchLoss", {}, lambda: (fixed(4), fixed(4)), ValueError),
    ("IBOTPlusPlusPatchLoss", {}, lambda: (fixed(6, 4), fixed(6, 4)), ValueError),
    ("VICRegLLoss", {}, lambda: (located_crops(False)[0], []), ValueError),
    ("VICRegLLoss", {}, lambda: (*located_crops(True)[:3], []), ValueError),
    ("VICRegLLoss", {}, lambda: located_crops(True)[:3], ValueError),
]


@pytest.mark.parametrize(("name", "arguments", "inputs", "error"), INPUTS)
def test_same_errors_of_inputs(name, arguments, inputs, error):
    for kind in (getattr(losses, name), THEIRS[name]):
        with pytest.raises(error):
            call(kind(**arguments), inputs())


def test_components_of_visreg():
    torch.manual_seed(0)
    given = global_and_local()
    found, want = (
        kind(num_slices=30).forward_components(**given)
        for kind in (losses.VISRegLoss, THEIRS["VISRegLoss"])
        if torch.manual_seed(1)
    )
    assert found._fields == want._fields
    assert_close([*found], [*want])


@pytest.mark.parametrize("name", sorted(CASES))
def test_gathering_needs_torch_distributed(name, monkeypatch):
    (flag,) = [
        p for p in inspect.signature(getattr(losses, name)).parameters if "gather_distributed" in p
    ] or [None]
    if flag is None:
        return
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    arguments = CASES[name][0].arguments | {flag: True}
    with pytest.raises(ValueError, match="needs a build of torch with torch.distributed"):
        getattr(losses, name)(**arguments)


@pytest.mark.parametrize("name", sorted({*CASES} - {*COMPILED_ELSEWHERE, *NOT_COMPILED_WHOLE}))
def test_compiles_whole(name):
    case = CASES[name][0]
    torch.manual_seed(0)
    inputs = case.inputs()
    want, loss = (make(getattr(losses, name), case) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = results(compiled, case, inputs, torch.float32)[:2]
    for mine, theirs in zip(got, results(want, case, inputs, torch.float32)[:2], strict=True):
        assert_close([*mine], [*theirs])


# Which rows there are, or which are neighbors, depends on values.
NEED_VALUES = ["DSERegularizer"]


@pytest.mark.parametrize("name", sorted({*CASES} - {*NEED_VALUES}))
def test_shapes_need_no_values(name):
    case = CASES[name][0]
    loss = make(getattr(losses, name), case)
    want = call(loss, case.inputs(), **case.options())

    def to_meta(x):
        return x.detach().to("meta").requires_grad_(x.requires_grad)

    given = tree_map(to_meta, case.inputs())
    found = call(copy.deepcopy(loss).to("meta"), given, **case.options())
    assert found.is_meta and (found.shape, found.dtype) == (want.shape, want.dtype)
    found.sum().backward()
    for x in tree_flatten(given)[0]:
        assert not x.requires_grad or x.grad.shape == x.shape
