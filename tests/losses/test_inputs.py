"""Errors of losses that no operator raises: they name argument, shape and expectation."""

import re

import pytest
import torch

from mast_ext.losses import (
    CO2Regularizer,
    InfoNCELoss,
    MSNLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    PMSNLoss,
    TiCoLoss,
    VICRegLoss,
)


def rows(*shape):
    return torch.randn(shape, requires_grad=True)


def integers(*shape):
    return torch.ones(shape, dtype=torch.int64)


def after_another_width():
    loss = TiCoLoss()
    loss(rows(6, 8), rows(6, 8))
    return loss


# A loss, inputs, the error, its message.
CASES = [
    (
        after_another_width,
        (rows(6, 5), rows(6, 5)),
        ValueError,
        "z_a and z_b must have the width of C, 8, got [6, 5]: set C to None to begin anew",
    ),
    (
        TiCoLoss,
        (rows(6, 5), integers(6, 5)),
        TypeError,
        "z_b must be floating point, got torch.int64",
    ),
    (
        CO2Regularizer,
        (integers(6, 5), rows(6, 5)),
        TypeError,
        "out0 must be floating point, got torch.int64",
    ),
    (
        MSNLoss,
        (rows(6, 5), rows(3, 5), rows(0, 5)),
        ValueError,
        "prototypes must have shape [K, D] with K >= 1, got [0, 5]",
    ),
    (
        PMSNLoss,
        (rows(6, 5), rows(3, 5), rows(0, 5)),
        ValueError,
        "prototypes must have shape [K, D] with K >= 1, got [0, 5]",
    ),
    (
        MSNLoss,
        (rows(6, 5), integers(3, 5), rows(4, 5)),
        TypeError,
        "targets must be floating point, got torch.int64",
    ),
    (
        NegativeCosineSimilarity,
        (rows(6, 5), rows(6, 4)),
        RuntimeError,
        "x0 and x1 must have one shape, or shapes that broadcast, got [6, 5] and [6, 4]",
    ),
    (
        NegativeCosineSimilarity,
        (rows(6), rows(6)),
        IndexError,
        "x0 and x1 must have the dimension dim=1, got [6]",
    ),
    (
        NegativeCosineSimilarity,
        (rows(6, 0), rows(6, 0)),
        ValueError,
        "x0 and x1 must have embeddings of 1 or more numbers along dim=1, got [6, 0]",
    ),
    (
        TiCoLoss,
        (rows(6, 0), rows(6, 0)),
        AssertionError,
        "z_a and z_b must have the same shape [B, D] with D >= 1, got (6, 0)",
    ),
    *(
        (
            VICRegLoss,
            (rows(*shape), rows(*shape)),
            AssertionError,
            f"z_a and z_b must have no empty axis, got {shape}",
        )
        for shape in ((4, 0), (4, 3, 0), (4, 0, 5))
    ),
    *(
        (
            NTXentLoss,
            (rows(*shape), rows(*shape)),
            ValueError,
            f"out0 must have shape [N, D] with D >= 1, got {list(shape)}",
        )
        for shape in ((6,), (6, 0))
    ),
    (
        NTXentLoss,
        (rows(6, 5), rows(6)),
        ValueError,
        "out0 and out1 must have one shape [N, D], got [6, 5] and [6]",
    ),
    (InfoNCELoss, (rows(2, 6, 5), rows(2, 6, 5)), ValueError, "queries must have shape [N, D]"),
]


@pytest.mark.parametrize(("make", "inputs", "error", "message"), CASES)
def test_messages(make, inputs, error, message):
    loss = make()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with pytest.raises(error, match="^" + re.escape(message)):
        loss(*inputs)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_tico_refuses_a_weight_of_the_past_that_is_none(beta):
    with pytest.raises(ValueError, match=f"^beta must be from 0 to 1, got {beta}$"):
        TiCoLoss(beta=beta)


@pytest.mark.parametrize("beta", [0, 1])
def test_tico_takes_the_ends(beta):
    loss = TiCoLoss(beta=beta)
    loss(rows(6, 5), rows(6, 5))
    first = loss.C.clone()
    loss(rows(6, 5), rows(6, 5))
    assert torch.equal(loss.C, first) == (beta == 1)


def test_tico_begins_anew():
    loss = after_another_width()
    loss.C = None
    loss(rows(6, 5), rows(6, 5))
    assert loss.C.shape == (5, 5)


@pytest.mark.parametrize("shapes", [((3, 1, 5), (4, 5)), ((5,), (4, 5)), ((1, 5), (0, 5))])
def test_shapes_that_broadcast(shapes):
    x0, x1 = (rows(*shape) for shape in shapes)
    found = NegativeCosineSimilarity(dim=-1, reduction="none")(x0, x1)
    torch.testing.assert_close(found, -torch.cosine_similarity(x0, x1, dim=-1))
