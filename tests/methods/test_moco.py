import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.methods import Encoded, MoCo
from mast_ext.methods.moco import MoCoOptions

BATCH, DIM = 6, 4


def build(**options):
    torch.manual_seed(0)
    return MoCo(5, AugmentationRecipe(), MoCoOptions((8, DIM), queue=10, **options))


def batch_of():
    images = torch.empty(2, BATCH, 3, 8, 8)
    return ViewBatch(images, torch.empty(0), torch.empty(0), torch.arange(BATCH), {})


def by_hand(query, key, queue, temperature=0.2):
    query, key, queue = (normalize(x, dim=1) for x in (query, key, queue))
    logits = torch.cat(((query * key).sum(1, keepdim=True), query @ queue.T), 1) / temperature
    return cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64))


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_is_that_of_finding_the_key_among_the_queue(symmetric):
    method = build(symmetric=symmetric)
    features = torch.randn(1 + symmetric, BATCH, 5, requires_grad=True)
    targets = torch.randn(1 + symmetric, BATCH, DIM)
    queue = method.queue.bank.clone()
    loss = method(Encoded(features, targets), batch_of())["loss"]
    queries = method.embed(features)
    if symmetric:
        pairs = [(queries[0], targets[1]), (queries[1], targets[0])]
    else:
        pairs = [(queries[0], targets[0])]
    expected = torch.stack([by_hand(*pair, queue) for pair in pairs]).mean()
    torch.testing.assert_close(loss, expected)
    # The backward pass takes the negatives of the forward pass, not those that replaced them.
    loss.backward()
    gradient, features.grad = features.grad, None
    expected.backward()
    torch.testing.assert_close(gradient, features.grad)


def test_queries_are_the_first_view_and_keys_the_second():
    for symmetric, student, teacher in ((False, [0], [1]), (True, [0, 1], [0, 1])):
        method = build(symmetric=symmetric)
        views = torch.arange(2)
        assert views[method.student_views].tolist() == student
        assert views[method.teacher().views].tolist() == teacher
        assert method.teacher().head is method.projector


def test_queue_holds_the_last_keys():
    """Ten places, six keys a step: full after two steps, then over again from the first."""
    method, seen = build(), []
    for _ in range(3):
        targets = torch.randn(1, BATCH, DIM)
        seen.append(normalize(targets[0], dim=1))
        method(Encoded(torch.randn(1, BATCH, 5), targets), batch_of())
    bank = method.queue.bank
    torch.testing.assert_close(bank, torch.cat((seen[2], seen[1][:4])))
    assert {"queue.bank", "queue.bank_ptr"} <= method.state_dict().keys()


def test_queue_stays_in_evaluation():
    method = build().eval()
    before = method.queue.bank.clone()
    method(Encoded(torch.randn(1, BATCH, 5), torch.randn(1, BATCH, DIM)), batch_of())
    assert torch.equal(before, method.queue.bank)


def test_momentum_is_constant():
    spec = build(momentum=0.9).teacher()
    assert (spec.momentum, spec.final_momentum) == (0.9, 0.9)
