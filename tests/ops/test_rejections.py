"""Calls that make no sense are refused with a message that names the argument."""

from typing import Any

import pytest
from operators import CALLS
from torch import Tensor, complex64, ones, tensor, zeros

from mast_ext import functional

NAN, INF = float("nan"), float("inf")

# By function: arguments it accepts, and what it says of changes to them.
REJECTIONS: dict[str, dict[Any, dict[str, Any]]] = {
    "budgeted_masks": {
        "accepts": {"mask_logits": ones(2, 5), "mean": ones(2) / 2},
        ValueError: {
            r"mask_logits must have shape \[F, D\] with F <= 8 and D >= 1, got \[5\]": {
                "mask_logits": ones(5)
            },
            r"with F <= 8 and D >= 1, got \[9, 5\]": {"mask_logits": ones(9, 5)},
            r"with F <= 8 and D >= 1, got \[2, 0\]": {"mask_logits": ones(2, 0)},
            r"mean must have shape \[2\], got \[3\]": {"mean": ones(3)},
        },
        TypeError: {
            "mask_logits must be float32 or float64, got Half": {"mask_logits": ones(2, 5).half()},
            "mask_logits must be float32, .* got Long": {"mask_logits": ones(2, 5).long()},
            "mean must be Float like mask_logits, got Double": {"mean": ones(2).double()},
        },
    },
    "grouped_squared_difference": {
        "accepts": {
            **{"x": ones(3, 5), "y": ones(3, 5), "group": zeros(3).long(), "groups": 2},
            "weight": ones(3),
        },
        ValueError: {
            r"x must have shape \[N, D\] with D >= 1, got \[5\]": {"x": ones(5)},
            r"x must have shape \[N, D\] with D >= 1, got \[3, 0\]": {"x": ones(3, 0)},
            r"y must have shape \[3, 5\], got \[3, 4\]": {"y": ones(3, 4)},
            r"group must have shape \[3\], got \[4\]": {"group": zeros(4).long()},
            r"group must lie below 2, got 2 at \[1\]": {"group": tensor([0, 2, 1])},
            "groups must be from 1 to 65535, got 0": {"groups": 0},
            "groups must be from 1 to 65535, got 65536": {"groups": 65536},
            "groups must fit into 64 bits, got 9223372036854775808": {"groups": 2**63},
            r"weight must have shape \[3\], got \[3, 1\]": {"weight": ones(3, 1)},
        },
        TypeError: {
            "x must be float32, .* got Long": {"x": ones(3, 5).long()},
            "y must be Float like x, got Half": {"y": ones(3, 5).half()},
            "group must be Long, got Int": {"group": zeros(3).int()},
            "weight must be Float beside Float embeddings, got Double": {
                "weight": ones(3).double()
            },
        },
    },
    "grouped_squared_difference_with_residual": {
        "accepts": {
            **{"x": ones(3, 5), "y": ones(3, 5), "group": zeros(3).long()},
            "dimension_weights": ones(2, 5),
        },
        ValueError: {
            r"dimension_weights must have shape \[G, D\], got \[5\]": {
                "dimension_weights": ones(5)
            },
            r"dimension_weights must have shape \[G, D\], got \[\]": {
                "dimension_weights": ones(())
            },
            r"dimension_weights must have shape \[2, 5\], got \[2, 4\]": {
                "dimension_weights": ones(2, 4)
            },
        },
        TypeError: {
            "dimension_weights must be Float beside Float embeddings, got Double": {
                "dimension_weights": ones(2, 5).double()
            },
        },
    },
    "grouped_means": {
        "accepts": {"group_weights": ones(2, 5), "sums": ones(2, 5), "counts": ones(2)},
        ValueError: {
            r"group_weights must have shape \[G, D\] with G <= 65535 and D >= 1, got \[5\]": {
                "group_weights": ones(5)
            },
            r"group_weights must have .* got \[2, 0\]": {"group_weights": ones(2, 0)},
            r"sums must have shape \[2, 5\], got \[2, 4\]": {"sums": ones(2, 4)},
            r"counts must have shape \[2\], got \[5\]": {"counts": ones(5)},
        },
        TypeError: {
            "group_weights must be float32 or float64, got Half": {
                "group_weights": ones(2, 5).half()
            },
            "sums must be Float like group_weights, got Double": {"sums": ones(2, 5).double()},
            "counts must be Float like group_weights, got Long": {"counts": ones(2).long()},
        },
    },
    "weighted_terms": {
        "accepts": {
            **{"first": ones(2, 5), "second": ones(3), "third": ones(())},
            **{"scales": (1.0, 2.0, 3.0), "weights": (1.0, 1.0, 1.0)},
        },
        ValueError: {
            "scales must have a number for each of the 3 terms, got 2": {"scales": (1.0, 2.0)},
            "weights must have a number for each of the 3 terms, got 4": {"weights": (1.0,) * 4},
            "second must be given where third is": {"second": None},
        },
        TypeError: {
            "first must be float32 or float64, got Half": {"first": ones(2, 5).half()},
            "second must be Float like first, got Double": {"second": ones(3).double()},
            "third must be Float like first, got Long": {"third": ones(()).long()},
        },
    },
    "gram_difference": {
        "accepts": {"s": ones(2, 3, 5), "t": ones(2, 3, 5), "remove_negative": "both"},
        ValueError: {
            r"s must have shape \[B, N, D\] with N >= 1 and D >= 1, got \[3, 5\]": {
                "s": ones(3, 5)
            },
            r"with N >= 1 and D >= 1, got \[2, 0, 5\]": {"s": ones(2, 0, 5)},
            r"with N >= 1 and D >= 1, got \[2, 3, 0\]": {"s": ones(2, 3, 0)},
            r"t must have shape \[2, 3, 5\], got \[2, 4, 5\]": {"t": ones(2, 4, 5)},
            "remove_negative must be 'teacher', 'both' or None, got 'student'": {
                "remove_negative": "student"
            },
        },
        TypeError: {
            "s must be float32, .* got Long": {"s": ones(2, 3, 5).long()},
            "t must be Float like s, got Half": {"t": ones(2, 3, 5).half()},
        },
    },
    "sliced_characteristic_sums": {
        "accepts": {"z": ones(2, 3, 5), "slices": ones(5, 4)},
        ValueError: {
            r"z must have shape \[V, N, D\] with D >= 1, got \[3, 5\]": {"z": ones(3, 5)},
            r"z must have shape \[V, N, D\] with D >= 1, got \[2, 3, 0\]": {"z": ones(2, 3, 0)},
            (
                r"slices must have shape \[5, M\] with M >= 1 to fit z of shape \[2, 3, 5\], "
                r"got \[4, 5\]"
            ): {"slices": ones(4, 5)},
            r"slices must have shape \[5, M\] with M >= 1 .* got \[5, 0\]": {"slices": ones(5, 0)},
            "knots must be at least 2, got 1": {"knots": 1},
            "knots must be at most 2147483647, got 4611686018427387904": {"knots": 2**62},
            "t_max must fit into a float of 64 bits, got a value of type int": {"t_max": 10**400},
            "t_min less than t_max, got 3 and 3": {"t_min": 3.0},
            "t_min and t_max must be finite, .* got 0 and inf": {"t_max": INF},
        },
        TypeError: {
            "z must be float32, .* got Long": {"z": ones(2, 3, 5).long()},
            "slices must be Float beside Half embeddings, got Half": {
                "z": ones(2, 3, 5).half(),
                "slices": ones(5, 4).half(),
            },
        },
    },
    "sliced_characteristic_distance": {
        "accepts": {"z": ones(2, 3, 5), "slices": ones(5, 4)},
        ValueError: {
            r"z must have shape \[V, N, D\] with N >= 1, got \[2, 0, 5\]": {"z": ones(2, 0, 5)},
            r"z must have shape \[V, N, D\] with N >= 1, got \[3, 5\]": {"z": ones(3, 5)},
            "knots must be from 2 to 2147483647, got 1": {"knots": 1},
            "knots must be from 3 to 2147483647, got 2": {"knots": 2, "interval": "symmetric"},
            "knots must be from 2 to 2147483647, got 4611686018427387904": {"knots": 2**62},
            "t_max must be positive, got 0": {"t_max": 0.0},
            "t_max must be positive, got nan": {"t_max": NAN},
            "interval must be 'half' or 'symmetric', got 'whole'": {"interval": "whole"},
        },
    },
    "epps_pulley_distance": {
        "accepts": {
            **{"sums": ones(2, 4, 2, 5), "images": 3},
            **{"phi": ones(4), "weights": ones(4)},
        },
        ValueError: {
            r"sums must have shape \[V, K, 2, M\] with K >= 1 and M >= 1, got \[2, 4, 5\]": {
                "sums": ones(2, 4, 5)
            },
            r"sums must have shape .* got \[2, 4, 3, 5\]": {"sums": ones(2, 4, 3, 5)},
            r"sums must have shape .* got \[2, 0, 2, 5\]": {"sums": ones(2, 0, 2, 5)},
            r"sums must have shape .* got \[2, 4, 2, 0\]": {"sums": ones(2, 4, 2, 0)},
            r"phi must have shape \[4\], got \[5\]": {"phi": ones(5)},
            r"weights must have shape \[4\], got \[4, 1\]": {"weights": ones(4, 1)},
            r"images must have shape \[\], got \[1\]": {"images": ones(1)},
            "images must be finite and at least 0, got -1": {"images": -1},
            "images must be finite and at least 0, got nan": {"images": NAN},
            "images must be finite and at least 0, got inf": {"images": INF},
        },
        TypeError: {
            "sums must be float32 or float64, got Half": {"sums": ones(2, 4, 2, 5).half()},
            "sums must be float32, .* got Long": {"sums": ones(2, 4, 2, 5).long()},
            "phi must be Float like sums, got Double": {"phi": ones(4).double()},
            "weights must be Float like sums, got Long": {"weights": ones(4).long()},
            "images must be a tensor or a number, got '3'": {"images": "3"},
        },
    },
    "view_pair_cross_entropy": {
        "accepts": {"lse": ones(2, 2, 5), "positive": ones(2, 2, 5)},
        ValueError: {
            r"lse must have shape \[..., V, V, N\] with V >= 1, got \[2, 5\]": {"lse": ones(2, 5)},
            r"lse must have shape .* with V >= 1, got \[2, 3, 5\]": {"lse": ones(2, 3, 5)},
            r"lse must have shape .* with V >= 1, got \[0, 0, 5\]": {"lse": ones(0, 0, 5)},
            r"positive must have shape \[2, 2, 5\], got \[2, 2, 1\]": {"positive": ones(2, 2, 1)},
            r"with V >= 2 and N >= 1 to take a mean, got \[1, 1, 5\]": {
                **{"lse": ones(1, 1, 5), "positive": ones(1, 1, 5)},
                "reduction": "mean",
            },
            r"with V >= 2 and N >= 1 to take a mean, got \[2, 2, 0\]": {
                **{"lse": ones(2, 2, 0), "positive": ones(2, 2, 0)},
                "reduction": "mean",
            },
            "reduction must be 'none' or 'mean', got 'sum'": {"reduction": "sum"},
        },
        TypeError: {
            "lse must be float32 or float64, got Half": {"lse": ones(2, 2, 5).half()},
            "lse must be float32, .* got Long": {"lse": ones(2, 2, 5).long()},
            "positive must be Float like lse, got Double": {"positive": ones(2, 2, 5).double()},
        },
    },
    "contrastive_loss": {
        "accepts": {"views": [ones(3, 5), ones(3, 5)], "temperature": 0.1},
        ValueError: {
            r"views must have shape \[V, N, D\], got \[3, 5\]": {"views": ones(3, 5)},
            "views must be 2 or more, got 1": {"views": ones(1, 3, 5)},
            "views must be 2 or more, got 0": {"views": []},
            r"views\[0\] must have shape \[N, D\] with N >= 1, got \[0, 5\]": {
                "views": ones(2, 0, 5)
            },
            r"views\[1\] must have shape \[3, 5\], got \[3, 4\]": {
                "views": [ones(3, 5), ones(3, 4)]
            },
            "temperature must be positive, got 0": {"temperature": 0.0},
            r"temperature must be a number or a scalar tensor, got shape \[2\]": {
                "temperature": ones(2)
            },
        },
        TypeError: {
            r"views\[1\] must be Float like views\[0\], got Half": {
                "views": [ones(3, 5), ones(3, 5).half()]
            },
            r"views\[0\] must be float32, .* got Long": {"views": ones(2, 3, 5).long()},
            r"views\[0\] must be a tensor, got \[1.0, 2.0\]": {"views": [[1.0, 2.0], [3.0, 4.0]]},
        },
    },
    "contrastive_logsumexp": {
        "accepts": {
            "x": ones(2, 3, 5),
            "y": ones(2, 4, 5),
            "masks": ones(2, 5),
            "temperature": 0.1,
        },
        ValueError: {
            r"x must have shape \[Vx, N, D\], got \[3, 5\]": {"x": ones(3, 5)},
            r"y must have shape \[Vy, M, 5\] to fit x of shape \[2, 3, 5\], got \[2, 3, 4\]": {
                "y": ones(2, 3, 4)
            },
            r"masks must have shape \[K, 5\] to fit x of shape \[2, 3, 5\], got \[5\]": {
                "masks": ones(5)
            },
            "masks must be non-negative, got a minimum of -0.5": {
                "masks": tensor([[1.0, -0.5, 0, 0, 0]])
            },
            "temperature must be positive, got 0": {"temperature": 0.0},
            "temperature must be positive, got -1": {"temperature": tensor(-1.0)},
            r"temperature must be a number or a scalar tensor, got shape \[2\]": {
                "temperature": ones(2)
            },
            (
                r"offset must lie between 0 and M - N = 1 for x of shape \[2, 3, 5\] "
                r"and y of shape \[2, 4, 5\], got 2"
            ): {"offset": 2},
            "offset must lie between 0 and M - N = 1 .* got -1": {"offset": -1},
            "offset must be 0 when y is not given, got 1": {"y": None, "offset": 1},
            "offset must be 0 when y is not given, got None": {"y": None, "offset": None},
            "offset must be given with exclude_self or exclude_positive, got None": {
                "offset": None,
                "exclude_positive": True,
            },
            (
                "y must have as many views as x, 2, with exclude_self=True or within_views=False, "
                "got 1"
            ): {"y": ones(1, 4, 5), "exclude_self": True},
        },
        TypeError: {
            "y must be Float like x, got Half": {"y": ones(2, 3, 5).half()},
            "x must be float32, .* got Long": {"x": ones(2, 3, 5).long()},
            "temperature must be Float beside Float embeddings, got Long": {
                "temperature": tensor(1.0).long()
            },
        },
    },
    "cross_correlation_penalty": {
        "accepts": {"a": ones(3, 5), "b": ones(3, 5), "lambda_": 1.0},
        ValueError: {
            r"a must have shape \[N, D\] with N >= 2 and D >= 1, got \[5\]": {"a": ones(5)},
            r"with N >= 2 and D >= 1, got \[1, 5\]": {"a": ones(1, 5)},
            r"with N >= 2 and D >= 1, got \[3, 0\]": {"a": ones(3, 0)},
            r"b must have shape \[3, 5\], got \[4, 5\]": {"b": ones(4, 5)},
            "variant must be 'official' or 'paper', got 'solo'": {"variant": "solo"},
        },
        TypeError: {
            "a must be float32, .* got Int": {"a": ones(3, 5).int()},
            "b must be Float like a, got Half": {"b": ones(3, 5).half()},
        },
    },
    "vicreg_terms": {
        "accepts": {
            **{"x": ones(3, 5), "y": ones(3, 5), "invariance": ones(4)},
            **{"scales": (1.0, 2.0, 3.0), "weights": (1.0, 1.0, 1.0)},
        },
        ValueError: {
            r"x must have shape \[N, D\] with N >= 2 and D >= 1, got \[2, 3, 5\]": {
                "x": ones(2, 3, 5)
            },
            r"with N >= 2 and D >= 1, got \[1, 5\]": {"x": ones(1, 5)},
            r"x must have shape .* N >= 2 and D >= 1, got \[1, 5\]": {
                **{"x": ones(1, 5), "y": ones(1, 5)}
            },
            r"y must have shape \[3, 5\], got \[3, 4\]": {"y": ones(3, 4)},
            "scales must have a number for each of the 3 terms, got 2": {"scales": (1.0, 2.0)},
            "weights must have a number for each of the 3 terms, got 4": {"weights": (1.0,) * 4},
            "eps must not be negative, got -1": {"eps": -1.0},
            "group and group_weights must be given together": {"group": ones(3).long()},
            "invariance must be None beside group": {
                **{"group": ones(3).long(), "group_weights": ones(2, 5)}
            },
            r"group must have shape \[3\], got \[4\]": {
                **{"invariance": None, "group": ones(4).long(), "group_weights": ones(2, 5)}
            },
            r"group_weights must have shape \[G, 5\] with 1 <= G <= 65535 to fit x, got \[2, 4\]": {
                **{"invariance": None, "group": ones(3).long(), "group_weights": ones(2, 4)}
            },
            r"group_weights must .* with 1 <= G <= 65535 to fit x, got \[65536, 5\]": {
                **{"invariance": None, "group": ones(3).long(), "group_weights": ones(65536, 5)}
            },
            "group must lie below 1, got 1": {
                **{"invariance": None, "group": ones(3).long(), "group_weights": ones(1, 5)}
            },
            "scales must fit into a float of 64 bits": {"scales": (1.0, 10**400, 1.0)},
        },
        TypeError: {
            "x must be float32, .* got Long": {"x": ones(3, 5).long()},
            "y must be Float like x, got Half": {"y": ones(3, 5).half()},
            "group must be Long, got Int": {
                **{"invariance": None, "group": ones(3).int(), "group_weights": ones(2, 5)}
            },
            "group_weights must be Float beside Float embeddings, got Half": {
                **{"invariance": None, "group": ones(3).long(), "group_weights": ones(2, 5).half()}
            },
            "invariance must be Float beside Float embeddings, got Half": {
                "invariance": ones(4).half()
            },
        },
    },
    "variance_covariance": {
        "accepts": {"z": ones(2, 3, 5)},
        ValueError: {
            r"z must have shape \[V, N, D\] with N >= 2 and D >= 1, got \[3, 5\]": {
                "z": ones(3, 5)
            },
            r"with N >= 2 and D >= 1, got \[2, 1, 5\]": {"z": ones(2, 1, 5)},
            r"with N >= 2 and D >= 1, got \[2, 3, 0\]": {"z": ones(2, 3, 0)},
            r"masks must have shape \[K, 5\] to fit z of shape \[2, 3, 5\], got \[5\]": {
                "masks": ones(5)
            },
            "masks must be non-negative, got a minimum": {"masks": -ones(2, 5)},
            "eps must not be negative, got -1": {"eps": -1.0},
        },
        TypeError: {
            "z must be float32, .* got Long": {"z": ones(2, 3, 5).long()},
            "masks must be Float beside Float embed": {"masks": ones(2, 5).double()},
        },
    },
    "subspace_nll": {
        "accepts": {
            "x": ones(2, 3, 5),
            "log_var_x": ones(2, 3, 5),
            "y": ones(2, 3, 5),
            "log_var_y": ones(2, 3, 5),
            "masks": ones(2, 5),
        },
        ValueError: {
            r"log_var_x must have shape \[2, 3, 5\] .*": {"log_var_x": ones(2, 3, 4)},
            r"log_var_x must have shape \[2, 3, 5\]": {"log_var_x": ones(2, 4, 5)},
            "log_var_y is missing": {"log_var_y": None},
            "log_var_y was given without y": {"y": None},
            r"log_var_y must have shape \[2, 3, 5\]": {"log_var_y": ones(2, 3, 2)},
            "variance must be 'diagonal' or 'subspace', got 'full'": {"variance": "full"},
            "variance must be given": {"masks": ones(5, 5)},
            "masks must be non-negative": {"masks": -ones(2, 5)},
        },
        TypeError: {
            "log_var_x must be Float like x": {"log_var_x": ones(2, 3, 5).half()},
        },
    },
    "subspace_similarity": {
        "accepts": {"x": ones(2, 3, 5), "y": ones(2, 3, 5), "masks": ones(2, 5)},
        ValueError: {
            r"x must have shape \[Vx, B, D\], got \[3, 5\]": {"x": ones(3, 5)},
            r"y must have shape \[Vy, 3, 5\] to fit x of shape \[2, 3, 5\], got \[2, 3, 4\]": {
                "y": ones(2, 3, 4)
            },
            r"masks must have shape \[K, 5\] to fit x of shape \[2, 3, 5\], got \[5\]": {
                "masks": ones(5)
            },
            "masks must be non-negative, got a minimum of -0.5": {
                "masks": tensor([[1.0, -0.5, 0, 0, 0]])
            },
            "metric must be 'cosine' or 'sqeuclidean', got 'dot'": {"metric": "dot"},
            "eps must be positive, got 0": {"eps": 0.0},
        },
        TypeError: {
            "y must be Float like x, got Half": {"y": ones(2, 3, 5).half()},
            "x must be float32, .* got Long": {"x": ones(2, 3, 5).long()},
            "masks must be Float beside Float embed": {"masks": ones(2, 5).double()},
        },
    },
    "gather_views": {
        "accepts": {"views": ones(3, 4, 5), "index": zeros(2, 4).long()},
        ValueError: {
            r"views must have shape \[V, B, ...\], got \[3\]": {"views": ones(3)},
            r"index must have shape \[S, 4\] to fit views of shape \[3, 4, 5\], got \[4\]": {
                "index": zeros(4).long()
            },
            r"index must have shape \[S, 4\] to fit views of shape \[3, 4, 5\], got \[2, 3\]": {
                "index": zeros(2, 3).long()
            },
            r"index must be in \[0, 3\), the views there are, got 3 at \[1, 2\]": {
                "index": tensor([[0, 1, 2, 0], [0, 0, 3, 0]])
            },
            r"index must be in \[0, 3\), the views there are, got -1 at \[0, 1\]": {
                "index": tensor([[0, -1, 2, 0]])
            },
            r"index must be in \[0, 0\), the views there are, got 0 at \[0, 0\]": {
                "views": ones(0, 4, 5)
            },
        },
        TypeError: {
            "index must be Long, got Float": {"index": zeros(2, 4)},
        },
    },
    "nearest_neighbor_distance": {
        "accepts": {"x": ones(3, 4)},
        ValueError: {
            r"x must have shape \[N, D\] .* got \[5\]": {"x": ones(5)},
            r"x must have shape \[N, D\] .* got \[2, 3, 4\]": {"x": ones(2, 3, 4)},
            r"another row to every row \(N != 1\), got \[1, 4\]": {"x": ones(1, 4)},
            r"with D >= 1 .* got \[3, 0\]": {"x": ones(3, 0)},
            "eps must be positive, got 0": {"eps": 0.0},
        },
        TypeError: {
            "x must be float32, .* got Long": {"x": ones(3, 4).long()},
        },
    },
    "prototype_cross_entropy": {
        "accepts": {
            "student": ones(2, 3, 5),
            "teacher": ones(2, 3, 5),
            "center": ones(5),
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
        },
        ValueError: {
            r"student must have shape \[S, B, C\] with S >= 1 and C >= 1, got \[3, 5\]": {
                "student": ones(3, 5)
            },
            r"student must have .* S >= 1 .* got \[0, 3, 5\]": {"student": ones(0, 3, 5)},
            r"student must have .* C >= 1, got \[2, 3, 0\]": {"student": ones(2, 3, 0)},
            (
                r"teacher must have shape \[T, 3, 5\] with T >= 1 to fit student of shape "
                r"\[2, 3, 5\], got \[2, 4, 5\]"
            ): {"teacher": ones(2, 4, 5)},
            r"teacher must .* got \[2, 3, 6\]": {"teacher": ones(2, 3, 6)},
            r"teacher must .* got \[0, 3, 5\]": {"teacher": ones(0, 3, 5)},
            r"center must have shape \[5\], got \[6\]": {"center": ones(6)},
            r"center must .* got \[1, 1, 5\]": {"center": ones(1, 1, 5)},
            r"weights must have shape \[2, 2, 3\] or broadcast to it, got \[2, 3, 1\]": {
                "weights": ones(2, 3, 1)
            },
            "student_temperature must be positive and finite, got 0": {"student_temperature": 0.0},
            "student_temperature must be positive and finite, got nan": {
                "student_temperature": NAN
            },
            "teacher_temperature must be positive and finite, got -0.1": {
                "teacher_temperature": -0.1
            },
            "teacher_temperature must be positive and finite, got inf": {
                "teacher_temperature": INF
            },
        },
        TypeError: {
            "student must be float32, .* Long": {"student": ones(2, 3, 5).long()},
            "teacher must be Float like student, got Half": {"teacher": ones(2, 3, 5).half()},
            "center must be Float beside Float logits, got Double": {"center": ones(5).double()},
        },
    },
    "sigmoid_contrast": {
        "accepts": {"x": ones(3, 5), "y": ones(4, 5), "scale": 10.0, "bias": ones([])},
        ValueError: {
            r"x must have shape \[N, D\], got \[3\]": {"x": ones(3)},
            r"x must have shape \[N, D\], got \[1, 3, 5\]": {
                "x": ones(1, 3, 5),
                "weights": ones([]),
            },
            r"y must have shape \[M, 5\] to fit x of shape \[3, 5\], got \[4, 6\]": {
                "y": ones(4, 6)
            },
            "scale must be a number or a scalar tensor, got shape .1.": {"scale": ones(1)},
            "bias must be a number or a scalar tensor, got shape .3.": {"bias": ones(3)},
            (
                r"offset must lie between 0 and M - N = 1 for x of shape \[3, 5\] and y of shape "
                r"\[4, 5\], got 2"
            ): {"offset": 2},
            r"offset must lie .* got -1": {"offset": -1},
            r"offset must lie between 0 and M - N = -1 .* got 0": {"y": ones(2, 5)},
            r"weights must have shape \[3\] or broadcast to it, got \[4\]": {"weights": ones(4)},
        },
        TypeError: {
            "x must be float32, .* Long": {"x": ones(3, 5).long(), "scale": ones([])},
            "y must be Float like x, got Half": {"y": ones(4, 5).half()},
            "scale must be Float beside Float embeddings, got Half": {"scale": ones([]).half()},
            "bias must be Double beside Double embeddings, got Float": {
                **{"x": ones(3, 5).double(), "y": ones(4, 5).double()},
            },
        },
    },
    "select_hard_crops": {
        "accepts": {"ce": ones(2, 5, 6), "num_locals": 2},
        ValueError: {
            r"ce must have shape \[G, G \+ L, B\] with G >= 2, got \[3, 4\]": {"ce": ones(3, 4)},
            r"with G >= 2, got \[1, 4, 5\]": {"ce": ones(1, 4, 5)},
            r"with G >= 2, got \[4, 3, 5\]": {"ce": ones(4, 3, 5)},
            r"ce must .* with G >= 2, got \[4, 3, 5\]": {"ce": ones(4, 3, 5), "limit": 3},
            r"num_locals must be from 0 to 3, the local crops of ce of shape \[2, 5, 6\], got 4": {
                "num_locals": 4
            },
            "num_locals must be from 0 to 3, .* got -1": {"num_locals": -1},
            "num_locals must be from 0 to 3, .* got 4": {"num_locals": 4, "limit": 2},
            "limit must be at least 1, got 0": {"limit": 0},
        },
        TypeError: {
            "ce must be float32, .* got Long": {"ce": ones(2, 5, 5).long()},
            "ce must be a tensor, got 3.0": {"ce": 3.0, "limit": 2},
        },
    },
    "select_hard_pairs": {
        "accepts": {"pair_losses": ones(3, 3, 5), "candidates": ones(3, 3).bool()},
        ValueError: {
            r"pair_losses must have shape \[V, V, B\], got \[3, 4, 5\]": {
                "pair_losses": ones(3, 4, 5)
            },
            r"pair_losses must have shape \[V, V, B\], got \[3, 3\]": {"pair_losses": ones(3, 3)},
            r"pair_losses must have 2 to 4096 views to choose a pair from, got shape \[1, 1, 5\]": {
                "pair_losses": ones(1, 1, 5),
                "candidates": None,
            },
            r"candidates must have shape \[3, 3\], got \[2, 2\]": {"candidates": ones(2, 2).bool()},
            "candidates must hold a pair of views i < j, got none above the diagonal": {
                "candidates": ones(3, 3).bool().tril()
            },
        },
        TypeError: {
            "pair_losses must be float32, .* got Long": {"pair_losses": ones(3, 3, 5).long()},
            "candidates must be Bool, got Float": {"candidates": ones(3, 3)},
        },
    },
    "select_hard_cosine_pairs": {
        "accepts": {"x": ones(2, 3, 5), "y": ones(2, 3, 5)},
        ValueError: {
            r"x must have shape \[Vx, B, D\], got \[3, 5\]": {"x": ones(3, 5)},
            r"x must have 2 to 4096 views to choose a pair from, got shape \[1, 3, 5\]": {
                "x": ones(1, 3, 5),
                "y": None,
            },
            r"y must have shape \[2, 3, 5\], got \[3, 3, 5\]": {"y": ones(3, 3, 5)},
            "eps must be positive, got 0": {"eps": 0.0},
            "candidates must hold a pair of views": {"candidates": zeros(2, 2).bool()},
        },
        TypeError: {
            "y must be Float like x, got Half": {"y": ones(2, 3, 5).half()},
            "x must be float32, .* got Int": {"x": ones(2, 3, 5).int()},
        },
    },
    "prototype_column_logsumexp": {
        "accepts": {"logits": ones(3, 4), "temperature": 0.1},
        ValueError: {
            r"logits must have shape \[N, C\], got \[4\]": {"logits": ones(4)},
            "temperature must be positive, got 0": {"temperature": 0.0},
            "temperature must be positive, got nan": {"temperature": NAN},
            r"center must have shape \[4\], got \[3\]": {"center": ones(3)},
        },
        TypeError: {
            "logits must be float32, .* got Long": {"logits": ones(3, 4).long()},
            "center must be Float beside Float logits, got Half": {"center": ones(4).half()},
        },
    },
    "sinkhorn_knopp": {
        "accepts": {"logits": ones(3, 4), "temperature": 0.1},
        ValueError: {
            r"logits must have shape \[\.\.\., C\], got \[4\]": {"logits": ones(4)},
            "temperature must be positive, got -1": {"temperature": -1.0},
            "temperature must be positive, got 0": {"temperature": 0.0, "iterations": 0},
            "iterations must be at least 0, got -1": {"iterations": -1},
        },
        TypeError: {
            "logits must be float32, .* got Long": {"logits": ones(3, 4).long()},
            "logits must be a tensor, got 'words'": {"logits": "words"},
        },
    },
}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (name, error, message)
        for name, of_function in REJECTIONS.items()
        for error in (ValueError, TypeError)
        for message in of_function.get(error, {})
    ],
)
def test_rejects(name, error, message):
    of_function = REJECTIONS[name]
    with pytest.raises(error, match=message):
        getattr(functional, name)(**(of_function["accepts"] | of_function[error][message]))


@pytest.mark.parametrize(
    ("error", "message"),
    [(e, m) for e in (ValueError, TypeError) for m in REJECTIONS["vicreg_terms"][e]],
)
def test_rejects_large_views_alike(error, message, monkeypatch):
    monkeypatch.setattr(functional, "MOST_TOGETHER", 0)  # one after the other, by other operators
    test_rejects("vicreg_terms", error, message)


@pytest.mark.parametrize("name", REJECTIONS)
def test_accepts_what_the_others_change(name):
    getattr(functional, name)(**REJECTIONS[name]["accepts"])


# What has to lie on the device of which other argument.
DEVICES = [
    ("contrastive_logsumexp", "y", "x"),
    ("view_pair_cross_entropy", "positive", "lse"),
    ("subspace_similarity", "masks", "x"),
    ("prototype_cross_entropy", "teacher", "student"),
    ("prototype_cross_entropy", "center", "student"),
    ("select_hard_pairs", "candidates", "pair_losses"),
    ("gather_views", "index", "views"),
]


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(("name", "moved", "other"), DEVICES)
def test_rejects_tensors_of_two_devices(name, moved, other, device):
    arguments = {
        key: value.to(device) if key != moved and isinstance(value, Tensor) else value
        for key, value in REJECTIONS[name]["accepts"].items()
    }
    with pytest.raises(ValueError, match=f"{moved} must be on cuda:0 like {other}, got cpu"):
        getattr(functional, name)(**arguments)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_every_tensor_has_to_be_on_the_device_of_the_others(call):
    """Of meta no kernel is run: its shape-only kernel says it, as the others do."""
    tensors = call.tensors()
    for name in tensors if len(tensors) > 1 else ():
        with pytest.raises(ValueError, match=r"^\w+ must be on \w+( like \w+)?, got ") as caught:
            call(**{**tensors, name: tensors[name].to("meta")})
        assert name.rstrip("_0123456789") in str(caught.value)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("value", [[1.0, 2.0], "words", 3.0], ids=repr)
def test_what_is_no_tensor_is_a_type_error(call, value):
    tensors = call.tensors()
    for name in tensors:
        if isinstance(value, float) and name in ("temperature", "scale", "bias"):
            continue
        shown = name.rstrip("_0123456789")
        with pytest.raises(TypeError, match=rf"^{shown}(\[\d\])? must be a tensor"):
            call(**{**tensors, name: value})


@pytest.mark.parametrize("call", [c for c in CALLS if c.form == "weights"], ids=str)
def test_complex_weights_are_refused(call):
    """Found by the fuzz: their imaginary parts were left out."""
    tensors = call.tensors()
    name = "weights" if "weights" in tensors else "weight"
    with pytest.raises((TypeError, ValueError), match=f"{name} must be .*, got "):
        call(**{**tensors, name: tensors[name].to(complex64)})
