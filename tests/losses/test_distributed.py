"""Distributed training equals training in one process on the global batch."""

import copy
import pickle
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

from mast_ext import distributed, losses
from mast_ext.distributed import gather_batch, require_equal_batches, start_ring_shift
from mast_ext.distributed import rank as rank_of_process
from mast_ext.losses.common.center import Center

pytestmark = pytest.mark.distributed

BATCH, FEATURES, DIM, VIEWS = 6, 5, 16, 3  # a process's batch; the Gram form from two of them on
BANK = 25  # rows; wraps around in the second of two steps
WORLD_SIZES = [1, 2, 3]
LOGSUMEXPS = ["swav", "dino_sinkhorn", "ibot_sinkhorn", "mast_uncertain"]
COMPILED = ["dclw", "dino_deferred", "sigreg", "sig_lip"]
CHECKPOINTED = ["nt_xent", "clip", "mast_nt_xent", "sig_lip", "koleo", "vicreg", "msn", "sigreg"]
TRANSFORMED = ["vicreg", "barlow", "nt_xent", "clip", "sig_lip"]
PATIENCE = timedelta(seconds=2)


def masks(**options):
    return losses.AugmentationMasks((0.25, 0.0, 0.25), DIM, **options)


def distance(a, b):
    return (a - b).square().sum(1)


LOSSES = {
    "vicreg": lambda: losses.VICRegLoss(gather_distributed=True),
    "vicreg_positions": lambda: losses.VICRegLoss(gather_distributed=True),
    "barlow": lambda: losses.BarlowTwinsLoss(0.1, gather_distributed=True),
    "negative_cosine": lambda: losses.NegativeCosineSimilarity(),
    "mast": lambda: losses.MASTLoss(masks(), gather_distributed=True),
    "mast_price": lambda: losses.MASTLoss(masks(price=0.2), gather_distributed=True),
    "mast_uncertain": lambda: losses.MASTLoss(masks(), gather_distributed=True),
    "mast_nt_xent": lambda: losses.MASTLoss(masks(), base="nt_xent", gather_distributed=True),
    "mast_nt_xent_uncertain": lambda: losses.MASTLoss(
        masks(), base="nt_xent", gather_distributed=True
    ),
    "nt_xent": lambda: losses.NTXentLoss(gather_distributed=True),
    "nt_xent_pairs": lambda: losses.NTXentLoss(0.1, gather_distributed=True),
    "nt_xent_all_views": lambda: losses.NTXentLoss(gather_distributed=True, negatives="all_views"),
    "nt_xent_bank": lambda: losses.NTXentLoss(
        memory_bank_size=(BANK, DIM), gather_distributed=True
    ),
    "dcl": lambda: losses.DCLLoss(gather_distributed=True),
    "dcl_weighted": lambda: losses.DCLLoss(weight_fn=distance, gather_distributed=True),
    "dclw": lambda: losses.DCLWLoss(gather_distributed=True),
    "info_nce": lambda: losses.InfoNCELoss(learn_temperature=True, gather_distributed=True),
    "info_nce_of_fixed_keys": lambda: losses.InfoNCELoss(
        learn_temperature=True, gather_distributed=True
    ),
    "info_nce_negatives": lambda: losses.InfoNCELoss(
        learn_temperature=True, gather_distributed=True
    ),
    "clip": lambda: losses.InfoNCELoss(
        two_sided=True, learn_temperature=True, gather_distributed=True
    ),
    "sig_lip": lambda: losses.SigLIPLoss(5.0, -2.0, learnable=True, gather_distributed=True),
    "sig_lip_of_fixed_keys": lambda: losses.SigLIPLoss(gather_distributed=True),
    "sig_lip_each": lambda: losses.SigLIPLoss(
        5.0, -2.0, learnable=True, gather_distributed=True, reduction="none"
    ),
    "equivariance": lambda: losses.EquivarianceLoss(gather_distributed=True),
    "dino": lambda: losses.DINOLoss(DIM, student_temp=0.5, teacher_temp=0.2),
    "dino_deferred": lambda: losses.DINOLoss(
        DIM, student_temp=0.5, teacher_temp=0.2, center_update="deferred"
    ),
    "dino_sinkhorn": lambda: losses.DINOLoss(DIM, student_temp=0.5, center_mode="sinkhorn"),
    "ibot": lambda: losses.IBOTPatchLoss(DIM, 0.2, 0.5),
    "ibot_deferred": lambda: losses.IBOTPatchLoss(DIM, 0.2, 0.5, center_update="deferred"),
    "ibot_token": lambda: losses.IBOTPatchLoss(DIM, 0.2, 0.5, weighting="token"),
    "ibot_all": lambda: losses.IBOTPatchLoss(DIM, 0.2, 0.5, center_tokens="all"),
    "ibot_sinkhorn": lambda: losses.IBOTPatchLoss(DIM, 0.2, 0.5, center_mode="sinkhorn"),
    "koleo": lambda: losses.KoLeoLoss(gather_distributed=True),
    "koleo_p": lambda: losses.KoLeoLoss(1.0, gather_distributed=True),
    "koleo_groups": lambda: losses.KoLeoLoss(topk=2, group_size=3, gather_distributed=True),
    "swav": lambda: losses.SwaVLoss(sinkhorn_gather_distributed=True),
    "msn": lambda: losses.MSNLoss(0.5, gather_distributed=True),
    "msn_pmsn": lambda: losses.PMSNLoss(0.5, gather_distributed=True),
    "capi": lambda: losses.CAPILoss(0.5, 0.5, gather_distributed=True),
    "ibot_plus_plus": lambda: losses.IBOTPlusPlusPatchLoss(DIM, 0.2, 0.5),
    "direct_clr": lambda: losses.DirectCLRLoss(8, gather_distributed=True),
    "macl": lambda: losses.MACLLoss(gather_distributed=True),
    "co2": lambda: losses.CO2Regularizer(t_consistency=0.5, gather_distributed=True),
    "co2_bank": lambda: losses.CO2Regularizer(
        t_consistency=0.5, memory_bank_size=(BANK, DIM), gather_distributed=True
    ),
    "hypersphere": lambda: losses.HypersphereLoss(gather_distributed=True),
    "det_con_b": lambda: losses.DetConBLoss(),
    "det_con_s": lambda: losses.DetConSLoss(),
    "vicregl": lambda: losses.VICRegLLoss(gather_distributed=True, num_matches=(3, 2)),
    "mmcr": lambda: losses.MMCRLoss(0.1, gather_distributed=True),
    "emp_ssl": lambda: losses.EMPSSLLoss(inv_coef=3.0, gather_distributed=True),
    "frossl": lambda: losses.FroSSLLoss(gather_distributed=True),
    "tico": lambda: losses.TiCoLoss(gather_distributed=True),
    "gram_anchoring": lambda: losses.GramAnchoringLoss(gather_distributed=True),
    "batch_gram": lambda: losses.GramAnchoringLoss(
        per_image=False, remove_neg=False, gather_distributed=True
    ),
    "patch_kernel": lambda: losses.PatchKernelAlignmentLoss(gather_distributed=True),
    "sigreg": lambda: losses.SIGReg(num_vectors=40, gather_distributed=True),
    "sigreg_seed": lambda: losses.SIGReg(num_vectors=40, gather_distributed=True, seed=7),
    "sigreg_pooled": lambda: losses.SIGReg(
        num_vectors=40, t_max=5.0, interval="symmetric", pooled=True, gather_distributed=True
    ),
    "lejepa": lambda: losses.LeJEPALoss(0.3, sigreg_num_vectors=40, gather_distributed=True),
    "lewm": lambda: losses.LeWMLoss(0.3, sigreg_num_vectors=40, gather_distributed=True),
    "visreg": lambda: losses.VISRegLoss(num_slices=40, gather_distributed=True),
}
# They gather nothing by image, so that processes may have different numbers.
WITHOUT_GATHERS = (
    "negative_cosine",
    "info_nce_negatives",
    "dino",
    "ibot",
    "swav",
    "msn",
    "capi",
    "tico",
    "patch_kernel",
    "gram_anchoring",
    "sigreg",
    "lejepa",
    "lewm",
)
# Their pair losses see the negatives of all processes.
GATHERED_PAIRS = ["mast_nt_xent", "nt_xent_pairs", "nt_xent_all_views", "dcl", "dclw", "clip"]
GATHERED_PAIRS += ["direct_clr", "macl", "sig_lip"]
# They need two images, or negatives, which may be on other processes.
OF_TWO_IMAGES = ["vicreg", "vicreg_positions", "mast", "nt_xent", "dcl", "dclw", "koleo"]
OF_TWO_IMAGES += ["direct_clr", "macl", "co2", "hypersphere", "det_con_b", "det_con_s", "vicregl"]
OF_TWO_IMAGES += ["mmcr", "emp_ssl", "frossl", "tico", "visreg", "sig_lip"]


class Model(nn.Module):
    """A projection and an objective, so that the gradient of both's parameters is compared."""

    def __init__(self, objective):
        super().__init__()
        torch.manual_seed(0)
        self.objective = objective
        self.projection = nn.Linear(FEATURES, DIM, bias=False)
        self.log_variance = nn.Linear(FEATURES, 1, bias=False)
        self.predictor = nn.Linear(DIM, DIM)
        self.teacher = nn.Linear(FEATURES, DIM, bias=False).requires_grad_(False)
        self.loss = LOSSES[objective]()

    def forward(self, images, changed):
        views, loss = self.projection(images), self.loss
        match self.objective:
            case "mast" | "mast_price" | "mast_nt_xent":
                return loss(*views[:2], changed).loss
            case "mast_uncertain" | "mast_nt_xent_uncertain":
                return loss(*views[:2], changed, self.log_variance(images[0])[:, 0]).loss
            case "vicreg_positions":
                return loss(*(view.unflatten(1, (4, 4)) for view in views[:2]))
            case "nt_xent_pairs" | "nt_xent_all_views":
                return loss(*views)
            case "nt_xent_bank":
                return loss(views[0], views[1]) + loss(views[1], views[2])
            case "sig_lip_each":  # every image weighs something else
                return (loss(views[0], views[1]) * (2 + images[0, :, 0])).mean()
            case "info_nce_of_fixed_keys" | "sig_lip_of_fixed_keys":
                return loss(views[0], views[1].detach())
            case "info_nce_negatives":
                return loss(views[0], views[1], self.predictor.weight)  # as a queue that all share
            case "equivariance":
                return loss(views, self.predictor(views))
            case "koleo" | "koleo_p" | "koleo_groups":
                return loss(views[0])
            case "msn" | "msn_pmsn":
                return loss(views[:2].flatten(0, 1), views[2], self.predictor.weight)
            case "capi":
                tokens = tokens_of(images[0])
                index = (tokens[..., :2] > 0).long().sum(-1)  # of [B, 4] in [0, 2]
                return loss(self.teacher(tokens), self.projection(tokens), index)
            case "ibot_plus_plus":
                tokens = tokens_of(images[0])
                inputs = self.teacher(tokens), self.projection(tokens)
                return loss(*inputs) + loss(*inputs, tokens[..., 0] > 0, visible_loss_weight=0.3)
            case "gram_anchoring" | "batch_gram":
                tokens = tokens_of(images[0])
                return loss(self.projection(tokens), self.teacher(tokens))
            case "patch_kernel":
                tokens = tokens_of(images[0])
                left_out = ~changed[:, :1].expand(-1, 4) & (torch.arange(4) > 0)
                return loss(self.projection(tokens), self.teacher(tokens), left_out)
            case "mmcr":
                views = views.transpose(0, 1)
                return loss(views[:, :2], views[:, 1:])
            case "emp_ssl" | "frossl":
                return loss(views)
            case "co2_bank" | "tico":
                return loss(views[0], views[1]) + loss(views[1], views[2])
            case "sigreg" | "sigreg_seed" | "sigreg_pooled":
                torch.manual_seed(rank_of_process())  # the first process's directions are for all
                return loss(views) + loss(views[0].square())
            case "lejepa" | "visreg":
                if self.objective == "lejepa":
                    torch.manual_seed(rank_of_process())
                return loss(global_proj=views[:1], local_proj=views[1:])
            case "lewm":
                torch.manual_seed(rank_of_process())
                clips = views.transpose(0, 1)
                return loss(predicted=clips[:, :2], target=clips[:, 1:], embeddings=clips)
            case "det_con_b" | "det_con_s":
                regions = [tokens_of(view) for view in images[:2]]
                embeddings = [self.projection(each) for each in regions]
                masks = [(each[..., :2] > 0).long().sum(-1) for each in regions]
                if self.objective == "det_con_b":
                    embeddings = [*(self.predictor(each) for each in embeddings), *embeddings]
                return loss(*embeddings, *masks)
            case "vicregl":
                tokens = [tokens_of(view).unflatten(1, (2, 2)) for view in images]
                features = [(v, self.projection(t)) for v, t in zip(views, tokens, strict=True)]
                places = [each[..., :2] for each in tokens]
                return loss(features[:2], places[:2], features[2:], places[2:])
            case "swav":
                return loss(0.1 * views[:2], 0.1 * views[2:])
            case "dino" | "dino_deferred" | "dino_sinkhorn":
                teacher = self.teacher(images[:2])
                return loss(teacher, views) + loss(2 * teacher, views)
            case str(name) if name.startswith("ibot"):
                some = changed[:, 0]  # none of the first process, or of one alone
                return self.patch_loss(images[0], some | True) + self.patch_loss(images[1], some)
            case _:
                return loss(views[0], views[1])

    def patch_loss(self, images, some):
        """Of four tokens an image, of which ``some`` images have masked ones."""
        tokens = tokens_of(images)
        mask = (tokens[..., 0] > 0) & some[:, None]
        teacher, student = self.teacher(tokens), self.projection(tokens)[mask]
        teacher = teacher.flatten(0, 1) if self.loss.center_tokens == "all" else teacher[mask]
        return self.loss(teacher, student, mask.unflatten(1, (2, 2)))


def tokens_of(images):
    """Four of an image: ``[B, 4, FEATURES]``."""
    return torch.stack([images, -images, images.flip(1), images.square()], 1)


def global_batch(world_size):
    """Images, and what their views differ by: some processes have no pair of some groups."""
    generator = torch.Generator().manual_seed(1)
    batch = world_size * BATCH
    images = torch.randn(VIEWS, batch, FEATURES, generator=generator)
    image = torch.arange(batch)
    return images, torch.stack((image // BATCH % 2 == 1, image % 2 == 0, image % 3 == 0), 1)


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def checkpointed(model):
    return partial(checkpoint, model, use_reentrant=False)


def train(objective, images, changed, average, around=lambda model: model):
    """The loss, the gradients as DistributedDataParallel averages them, and buffers."""
    model = Model(objective)
    loss = around(model)(images, changed)
    loss.backward()
    results = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    state = model.loss.state_dict()  # with pending updates
    return [average(result) for result in results] + [state[name] for name in sorted(state)]


def in_transform(objective, images, changed):
    """Parameters' gradients inside of torch.func.grad, each beside autograd's."""
    model = Model(objective)
    model(images, changed).backward()
    trained = {name: p for name, p in model.named_parameters() if p.grad is not None}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (images, changed))

    gradients = torch.func.grad(loss)({name: p.detach() for name, p in trained.items()})
    return [(gradients[name], p.grad) for name, p in trained.items()]


def pair_losses(objective, images, changed):
    with torch.no_grad():
        model = Model(objective)
        given = (changed,) if objective.startswith("mast") else ()
        return model.loss.pair_losses(model.projection(images), *given)


def errors_of(function):
    """The error and what it came from."""
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return type(error).__name__, str(error), error.__cause__ is not None
    return None


def join(directory, name, rank, world_size, timeout=timedelta(minutes=2)):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/{name}",
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


OF_THE_FIRST = {  # what differs: what is needed, what the first process has, what others have
    "width": ("as many numbers per image", 2 * DIM + 2, 2 * DIM),
    "dtype": ("embeddings of the same dtype", "bfloat16", "float32"),
    "gradient": ("embeddings that require a gradient, or none that do,", "yes", "no"),
}


def unequal_batches(rank):
    """Every loss that gathers, with a smaller batch on the last process."""
    batch = BATCH - (rank == dist.get_world_size() - 1)
    images, changed = torch.randn(VIEWS, batch, FEATURES), torch.zeros(batch, 3).bool()
    names = [name for name in LOSSES if not name.startswith(WITHOUT_GATHERS)]
    found = {name: errors_of(lambda name=name: Model(name)(images, changed)) for name in names}
    width = DIM + (rank == 0)
    loss = losses.NTXentLoss(gather_distributed=True)
    found["width"] = errors_of(lambda: loss(*torch.randn(2, BATCH, width)))
    dtype = torch.bfloat16 if rank == 0 else torch.float32
    found["dtype"] = errors_of(lambda: loss(*torch.randn(2, BATCH, DIM, dtype=dtype)))
    learns = torch.randn(2, BATCH, DIM, requires_grad=rank == 0)
    found["gradient"] = errors_of(lambda: loss(*learns))
    return found


SHARED_SUMS = ["sigreg_seed", "gram_anchoring"]


def batches_of_other_sizes(rank, world_size, average):
    """The last process has no image at all, and those before it have one less each."""
    sizes = [BATCH - other for other in range(world_size - 1)] + [0]
    images, changed = global_batch(world_size)
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return {n: train(n, images[:, mine], changed[mine], average) for n in SHARED_SUMS}


def logsumexps_of_many_processes(rank, images, changed, average):
    """As more processes than these have them, which exchange a maximum and a sum."""
    extremes = torch.tensor([rank, -1e4 * rank, 1e4 * rank, -float("inf"), 0.0, 0.0, 1.0])
    if rank == 1:
        extremes[4:] = torch.tensor([float("inf"), float("nan"), -float("inf")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "FEW_PROCESSES", 1)
        found = {n: train(n, images, changed, average) for n in LOGSUMEXPS}
        return found, distributed.all_reduce_logsumexp(extremes), extremes


def sig_lip_of_rows(x, y):
    """The loss, and gradients of the rows and of what is learned, as they are on this process."""
    loss = losses.SigLIPLoss(5.0, -2.0, learnable=True, gather_distributed=True)
    loss = loss.to(torch.promote_types(x.dtype, torch.float32))
    x, y = (rows.detach().requires_grad_() for rows in (x, y))
    value = loss(x, y)
    return value.detach(), *torch.autograd.grad(value, (x, y, loss.log_scale, loss.bias))


def rows_of_16_bits(world_size, dtype):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, world_size * BATCH, DIM, generator=generator).to(dtype)


def sizes_of_what_lies_on_a_gpu(rank):
    """Compared by the hosts: tensors without values stand for those whose values are not there."""
    last = dist.get_world_size() - 1
    sizes = {"equal": BATCH, "unequal": BATCH - (rank == last), "equal again": BATCH}
    tensors = {name: torch.empty(size, DIM, device="meta") for name, size in sizes.items()}
    return {name: errors_of(partial(require_equal_batches, x, 0)) for name, x in tensors.items()}


def traffic_of_gradients(rank):
    """What the backward pass of a gather calls, and its gradient."""
    calls = []
    x = torch.full((BATCH, 2), float(rank), requires_grad=True)
    gathered = gather_batch(x, 0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "reduce_scatter_tensor"):
            original = getattr(dist, name)

            def noting(*args, original=original, name=name, **kwargs):
                calls.append((name, args[0].numel()))
                return original(*args, **kwargs)

            patch.setattr(dist, name, noting)
        weight = torch.arange(len(gathered)).unsqueeze(1) + rank
        (gathered * weight).sum().backward()
    return calls, x.grad


def pending_updates():
    """The center as it lies there after a step, as saved, loaded and copied."""
    found = {}
    for center_update in ("now", "deferred"):
        loss, resumed = (losses.DINOLoss(DIM, center_update=center_update) for _ in range(2))
        steps = [[torch.randn(2, BATCH, DIM), torch.randn(3, BATCH, DIM)] for _ in range(4)]
        loss(*steps[0])
        lies = loss.center.clone()
        saved = {name: value.clone() for name, value in loss.state_dict().items()}
        resumed(*steps[1])  # is overwritten, its pending update too
        resumed.load_state_dict(saved)
        curves = [[each(*step) for step in steps[2:]] for each in (loss, resumed)]
        copied = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
        found[center_update] = {
            "lies": lies,
            "saved": saved["center"],
            "curves": curves,
            "ends": [each.state_dict()["center"] for each in (loss, resumed, copied)],
        }
    return found


def late(directory, rank, world_size):
    """The last process is not there when the others gather, until they have given up."""
    join(directory, "late", rank, world_size, PATIENCE)
    loss = losses.NTXentLoss(gather_distributed=True)
    if rank < world_size - 1:
        found = [errors_of(lambda: loss(*torch.randn(2, BATCH, DIM)))]
        (Path(directory) / f"{rank}.gave_up").touch()
    else:
        found, deadline = None, time.monotonic() + 60
        while len(list(Path(directory).glob("*.gave_up"))) < rank and time.monotonic() < deadline:
            time.sleep(0.02)
    dist.destroy_process_group()
    return found


def dead(directory, rank, world_size):
    """The last process ends between forward and backward, or before a center moves."""
    join(directory, "dead", rank, world_size)
    center = Center((1, DIM), center_update="deferred")
    views = torch.randn(2, BATCH, DIM, requires_grad=True)
    loss = losses.NTXentLoss(gather_distributed=True)(*views)
    if rank == world_size - 1:
        return None

    def ring():
        start_ring_shift(views)()

    def save_center():
        center.update(torch.randn(BATCH, DIM))
        center.state_dict()

    return errors_of(loss.backward), errors_of(save_center), errors_of(ring)


def second_derivatives(images):
    """What losses say that gather when their gradient is differentiated, by named inputs."""
    found = {}
    for loss in (
        losses.NTXentLoss(gather_distributed=True),
        losses.SigLIPLoss(gather_distributed=True),
    ):
        x, y = (view.detach().requires_grad_() for view in images[:2])
        (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        penalty = grad.square().sum()
        found[type(loss).__name__] = errors_of(lambda p=penalty, x=x: torch.autograd.grad(p, x))
    return found


def tensors_of_inference_mode(images):
    """What losses say of rows that autograd cannot keep, beside others that have a gradient."""
    x = images[0].clone().requires_grad_()
    with torch.inference_mode():
        views = images.clone()
    sig_lip = losses.SigLIPLoss(gather_distributed=True)
    info_nce = losses.InfoNCELoss(learn_temperature=True, gather_distributed=True)
    return {
        "SigLIPLoss": errors_of(lambda: sig_lip(x, views[1]).backward()),
        "InfoNCELoss": errors_of(lambda: info_nce.pair_losses(views).sum().backward()),
    }


def beside_a_default_device(images):
    """What losses say of tensors elsewhere than torch makes them."""
    nt_xent, tico = (kind(gather_distributed=True) for kind in (losses.NTXentLoss, losses.TiCoLoss))
    with torch.device("meta"):
        return {
            "sizes": errors_of(lambda: nt_xent(*images[:2])),
            "numbers": errors_of(lambda: tico(*images[:2])),
        }


def run_world(rank, world_size, directory):
    join(directory, f"equal{world_size}", rank, world_size)

    def average(x):
        dist.all_reduce(x)
        return x / world_size

    images, changed = global_batch(world_size)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    found = {
        "results": {n: train(n, images[:, mine], changed[mine], average) for n in LOSSES},
        "shares": {
            name: pair_losses(name, images[:, mine], changed[mine]) for name in GATHERED_PAIRS
        },
        "an_image_each": {
            name: train(name, images[:, [rank]], changed[[rank]], average)
            for name in OF_TWO_IMAGES
            if world_size > 1
        },
        "other_sizes": batches_of_other_sizes(rank, world_size, average)
        if world_size > 1
        else None,
        "16_bits": {
            dtype: sig_lip_of_rows(*rows_of_16_bits(world_size, dtype)[:, mine])
            for dtype in (torch.bfloat16, torch.float16)
        },
        "gathered": gather_batch(torch.full((2, 1), float(rank), dtype=torch.bfloat16), 1),
        "unequal": unequal_batches(rank) if world_size > 1 else None,
        "on_gpu": sizes_of_what_lies_on_a_gpu(rank) if world_size > 1 else None,
        "traffic": traffic_of_gradients(rank) if world_size > 1 else None,
        "second": second_derivatives(images[:, mine]) if world_size > 1 else None,
        "inference": tensors_of_inference_mode(images[:, mine]) if world_size > 1 else None,
        "default_device": beside_a_default_device(images[:, mine]) if world_size > 1 else None,
    }
    if world_size == max(WORLD_SIZES):
        for around, names in ((compiled, COMPILED), (checkpointed, CHECKPOINTED)):
            found[around.__name__] = {
                name: train(name, images[:, mine], changed[mine], average, around) for name in names
            }
        found["transformed"] = {
            name: in_transform(name, images[:, mine], changed[mine]) for name in TRANSFORMED
        }
        found["logsumexps"] = logsumexps_of_many_processes(
            rank, images[:, mine], changed[mine], average
        )
        torch.manual_seed(rank)
        found["pending"] = pending_updates()
    dist.destroy_process_group()
    return found


def run_process(rank, directory):
    torch.set_num_threads(1)
    found = {size: run_world(rank, size, directory) for size in WORLD_SIZES if rank < size}
    for desertion in (late, dead):
        found[desertion.__name__] = desertion(directory, rank, max(WORLD_SIZES))
    torch.save(found, f"{directory}/{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What every process found."""
    directory = tmp_path_factory.mktemp("gloo")
    mp.spawn(run_process, (str(directory),), nprocs=max(WORLD_SIZES))
    return [torch.load(directory / f"{rank}.pt") for rank in range(max(WORLD_SIZES))]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("objective", LOSSES)
def test_equals_one_process(objective, world_size, processes):
    want = train(objective, *global_batch(world_size), average=lambda x: x)
    for found in processes[:world_size]:
        results = found[world_size]["results"][objective]
        assert len(results) == len(want)
        for mine, truth in zip(results, want, strict=True):
            scale = max(1.0, truth.abs().max().item())
            torch.testing.assert_close(mine, truth, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("what", ["inference", "default_device"])
def test_takes_tensors_of_another_mode_or_device_than_torchs(what, processes):
    for found in processes:
        assert set(found[len(processes)][what].values()) == {None}


@pytest.mark.parametrize("objective", LOGSUMEXPS)
def test_many_processes_equal_few(objective, processes):
    for found in processes:
        found = found[len(processes)]
        many, few = found["logsumexps"][0][objective], found["results"][objective]
        for mine, truth in zip(many, few, strict=True):
            torch.testing.assert_close(mine, truth)


def test_logsumexp_of_many_processes_cannot_overflow(processes):
    every = [found[len(processes)]["logsumexps"] for found in processes]
    want = torch.stack([extremes for _, _, extremes in every]).logsumexp(0)
    for _, mine, _ in every:
        torch.testing.assert_close(mine, want, equal_nan=True)


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("objective", OF_TWO_IMAGES)
def test_an_image_on_each_process_equals_one_process(objective, world_size, processes):
    images, changed = global_batch(world_size)
    want = train(objective, images[:, :world_size], changed[:world_size], average=lambda x: x)
    for found in processes[:world_size]:
        results = found[world_size]["an_image_each"][objective]
        for mine, truth in zip(results, want, strict=True):
            scale = max(1.0, truth.abs().max().item())
            torch.testing.assert_close(mine, truth, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("around", "objective"),
    [("compiled", name) for name in COMPILED] + [("checkpointed", name) for name in CHECKPOINTED],
)
def test_equals_itself_compiled_and_in_a_checkpoint(around, objective, processes):
    for found in processes:
        found = found[len(processes)]
        pairs = zip(found[around][objective], found["results"][objective], strict=True)
        for mine, plain in pairs:
            torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("objective", TRANSFORMED)
def test_gathers_inside_of_transforms(objective, processes):
    for found in processes:
        gradients = found[len(processes)]["transformed"][objective]
        assert gradients
        for mine, truth in gradients:
            torch.testing.assert_close(mine, truth)


@pytest.mark.parametrize("center_update", ["now", "deferred"])
def test_pending_updates_of_the_center_are_never_lost(center_update, processes):
    every = [found[len(processes)]["pending"][center_update] for found in processes]
    for found in every:
        assert found["saved"].any()
        lies = found["saved"] if center_update == "now" else torch.zeros_like(found["saved"])
        assert torch.equal(found["lies"], lies)
        for mine, truth in zip(*found["curves"], strict=True):
            assert torch.equal(mine, truth)
        for end in found["ends"]:
            assert torch.equal(end, every[0]["ends"][0])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("objective", GATHERED_PAIRS)
def test_pair_losses_are_those_of_one_process(objective, world_size, processes):
    want = pair_losses(objective, *global_batch(world_size))
    shares = [found[world_size]["shares"][objective] for found in processes[:world_size]]
    torch.testing.assert_close(torch.cat(shares, -1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_ring_of_16_bits_equals_one_process(dtype, world_size, processes):
    """What goes round is 16-bit rows and sums of their gradients, which are not 16-bit."""
    value, *gradients = sig_lip_of_rows(*rows_of_16_bits(world_size, dtype).double())
    every = [found[world_size]["16_bits"][dtype] for found in processes[:world_size]]
    values, x, y, *learned = zip(*every, strict=True)
    torch.testing.assert_close(torch.stack(values).mean().double(), value, rtol=1e-6, atol=0)
    for shares, want in zip((x, y), gradients[:2], strict=True):
        assert all(share.dtype == dtype for share in shares)
        found = torch.cat(shares).double() / world_size
        # Every block is rounded, and their sum.
        error = (world_size + 1) / 2 * torch.finfo(dtype).eps * want.abs().max().item()
        torch.testing.assert_close(found, want, rtol=0, atol=error)
    for shares, want in zip(learned, gradients[2:], strict=True):
        found = torch.stack(shares).mean().double()
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_gathers_in_the_order_of_ranks(world_size, processes):
    for found in processes[:world_size]:
        gathered = found[world_size]["gathered"]
        assert gathered.tolist() == [list(range(world_size))] * 2
        assert gathered.dtype == torch.bfloat16


@pytest.mark.parametrize("name", SHARED_SUMS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_batches_of_any_size_are_one(world_size, name, processes):
    images, changed = global_batch(world_size)
    count = sum(BATCH - other for other in range(world_size - 1))
    want = train(name, images[:, :count], changed[:count], lambda x: x)
    for found in processes[:world_size]:
        got = found[world_size]["other_sizes"][name]
        for mine, exact in zip(got, want, strict=True):
            torch.testing.assert_close(mine, exact, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_unequal_batches_are_an_error_on_every_process(world_size, processes):
    for found in processes[:world_size]:
        for name, error in found[world_size]["unequal"].items():
            what, on_ranks = "a batch of the same size", [BATCH] * (world_size - 1) + [BATCH - 1]
            if name in OF_THE_FIRST:
                what, first, others = OF_THE_FIRST[name]
                on_ranks = [first] + [others] * (world_size - 1)
            got = ", ".join(f"{each} on rank {rank}" for rank, each in enumerate(on_ranks))
            message = f"gather_distributed=True needs {what} on every process, got {got}"
            assert error == ("ValueError", message, False), name


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_sizes_are_compared_without_waiting_for_a_gpu(world_size, processes):
    sizes = [BATCH] * (world_size - 1) + [BATCH - 1]
    got = ", ".join(f"{size} on rank {rank}" for rank, size in enumerate(sizes))
    message = f"gather_distributed=True needs a batch of the same size on every process, got {got}"
    for found in processes[:world_size]:
        assert found[world_size]["on_gpu"] == {
            "equal": None,
            "unequal": ("ValueError", message, False),
            "equal again": None,
        }


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_second_derivatives_are_refused(world_size, processes):
    for found in processes[:world_size]:
        for name, error in found[world_size]["second"].items():
            assert error is not None and "has no second derivative" in error[1], name


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_gradients_of_a_gather_are_not_sent_to_all(world_size, processes):
    for rank, found in enumerate(processes[:world_size]):
        calls, grad = found[world_size]["traffic"]
        assert calls == [("reduce_scatter_tensor", BATCH * 2)]
        rows = torch.arange(BATCH) + rank * BATCH
        want = world_size * rows + sum(range(world_size))
        assert torch.equal(grad, want.float().unsqueeze(1).expand(-1, 2))


@pytest.mark.parametrize(
    ("desertion", "sums"),
    [(late, ["all-gather"]), (dead, ["all-gather", "all-reduce", "ring shift"])],
)
def test_an_absent_process_is_a_clear_error(desertion, sums, processes):
    """Not a wait without end, and not the backend's words alone."""
    message = "{} failed on rank {} of {}: another process died or is late"
    for rank, found in enumerate(processes[:-1]):
        want = [("RuntimeError", message.format(name, rank, len(processes)), True) for name in sums]
        assert list(found[desertion.__name__]) == want


def test_one_process_gathers_nothing():
    x = torch.randn(3, 4)
    assert gather_batch(x, 0) is x
