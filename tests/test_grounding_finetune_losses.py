"""Losses on hand-worked numbers and against plain loops; matching where boxes lack or abound; flattened layers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from finetune_runs import settings
from small_models import game, small_mdetr, small_vilt
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from grounding.errors import BadInput
from grounding.finetune.losses import (
    Matching,
    box_losses,
    contrastive_alignment_loss,
    map_divergence,
    match,
    mean_over_phrases,
    soft_token_loss,
)
from grounding.finetune.objectives import LossWeights, aligner_losses, boxes_a_process, mdetr_losses, objective_for
from grounding.finetune.targets import box_maps, make_targets, point_maps


def random_case(boxes_of: list[int], queries: int = 5, slots: int = 6, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits, predicted boxes, target boxes, positive map and owners for examples with that many boxes."""
    generator = torch.Generator().manual_seed(seed)
    total, examples = sum(boxes_of), len(boxes_of)
    logits = torch.randn(examples, queries, slots + 1, generator=generator)
    predicted = torch.rand(examples, queries, 4, generator=generator) * 0.4 + 0.2
    truth = box_convert(torch.rand(total, 4, generator=generator) * 0.4 + 0.2, "cxcywh", "xyxy")
    positive = torch.zeros(total, slots + 1)
    positive[torch.arange(total), torch.arange(total) % slots] = 1.0
    owner = torch.arange(examples).repeat_interleave(torch.tensor(boxes_of))
    return logits, predicted, truth, positive, owner


def as_sets(found: Matching) -> set[tuple[int, int, int]]:
    return set(zip(found.example.tolist(), found.query.tolist(), found.box.tolist(), strict=True))


def test_matching_by_hand():
    """One box a token; the cost of -probability + 5 L1 - 2 GIoU sends each to the query that fits best in all."""
    logits = torch.full((1, 3, 4), -20.0)
    logits[0, 0, 0] = logits[0, 1, 1] = logits[0, 2, 3] = 0.0  # query 2 says no object
    where = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    truth, positive = box_convert(where, "cxcywh", "xyxy"), torch.eye(4)[:2]
    predicted = torch.stack([where[0], where[1], where[1]])[None]
    assert as_sets(match(logits, predicted, truth, positive, torch.tensor([0, 0]))) == {(0, 0, 0), (0, 1, 1)}
    # Boxes swapped: 5 L1 of 1.2 outweighs a probability of 1, so now the boxes decide.
    swapped = predicted[:, [1, 0, 2]]
    assert as_sets(match(logits, swapped, truth, positive, torch.tensor([0, 0]))) == {(0, 1, 0), (0, 0, 1)}
    # Query 2 sits on box 1 as exactly as query 1, which has the right token.
    assert as_sets(match(logits[:, [2, 1, 0]], swapped[:, [2, 0, 1]], truth, positive, torch.tensor([0, 0]))) == {
        (0, 2, 0),
        (0, 1, 1),
    }


@pytest.mark.parametrize("boxes_of", [[2, 3], [0, 3, 1], [3, 0], [5, 2], [4]])
def test_matching_is_the_cheapest_assignment_of_each_example(boxes_of):
    logits, predicted, truth, positive, owner = random_case(boxes_of)
    found = match(logits, predicted, truth, positive, owner)
    assert torch.equal(owner[found.box], found.example)
    for example, count in enumerate(boxes_of):
        own = (owner == example).nonzero()[:, 0].tolist()
        chosen = {b: q for e, q, b in as_sets(found) if e == example}
        assert sorted(chosen) == own
        assert len(set(chosen.values())) == count
        if count:
            overlap = generalized_box_iou(box_convert(predicted[example], "cxcywh", "xyxy"), truth[own])
            distance = torch.cdist(predicted[example], box_convert(truth[own], "xyxy", "cxcywh"), p=1)
            cost = 5 * distance - 2 * overlap - logits[example].softmax(-1) @ positive[own].T
            least = min(sum(cost[q, k] for k, q in enumerate(order)) for order in permutations(range(5), count))
            mine = sum(cost[chosen[b], k] for k, b in enumerate(own))
            assert float(mine) == pytest.approx(float(least), abs=1e-5)


def test_boxes_in_any_order_are_matched_to_their_own_examples():
    logits, predicted, truth, positive, owner = random_case([2, 3])
    found = as_sets(match(logits, predicted, truth, positive, owner))
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = match(logits, predicted, truth[order], positive[order], owner[order])
    assert {(e, q, int(order[b])) for e, q, b in as_sets(moved)} == found


def test_matching_nothing_is_empty():
    logits, predicted, truth, positive, owner = random_case([0, 0])
    found = match(logits, predicted, truth, positive, owner)
    assert len(found.box) == len(found.query) == len(found.example) == 0
    assert found.box.dtype == torch.int64


def test_more_boxes_than_queries_leaves_boxes_out():
    logits, predicted, truth, positive, owner = random_case([7, 1], queries=4)
    found = match(logits, predicted, truth, positive, owner)
    assert sorted(found.query[found.example == 0].tolist()) == [0, 1, 2, 3]
    assert len(set(found.box.tolist())) == 5
    losses = [soft_token_loss(logits, positive, found, 8), *box_losses(predicted, truth, found, 8)]
    assert all(loss.isfinite() for loss in losses)


def test_matching_of_a_broken_model_does_not_hide_its_losses():
    logits, predicted, truth, positive, owner = random_case([2, 1])
    logits[0, 0, 0] = torch.nan
    predicted[1, 2] = torch.inf
    found = match(logits, predicted, truth, positive, owner)
    assert len(found.box) == 3
    assert not soft_token_loss(logits, positive, found, 3).isfinite()


def test_soft_token_loss_by_hand():
    """Two queries over two slots and no object; the first is matched to a phrase of both tokens."""
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]).log()
    positive = torch.tensor([[0.5, 0.5, 0.0]])
    matching = Matching(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    matched = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    unmatched = 0.1 * -math.log(0.8)
    assert float(soft_token_loss(logits, positive, matching, 1)) == pytest.approx(matched + unmatched, abs=1e-5)
    assert float(soft_token_loss(logits, positive, matching, 4)) == pytest.approx((matched + unmatched) / 4, abs=1e-5)
    nothing = Matching(*[torch.zeros(0, dtype=torch.int64)] * 3)
    expected = 0.1 * -(math.log(0.25) + math.log(0.8))
    assert float(soft_token_loss(logits, positive[:0], nothing, 1)) == pytest.approx(expected, abs=1e-5)


def test_a_row_that_sums_to_one_weighs_a_phrase_once_and_a_binary_one_once_a_token():
    """Where we differ from the study on purpose: its rows were binary (see docs/differences.md)."""
    logits = torch.zeros(1, 1, 5)
    matching = Matching(*[torch.tensor([0])] * 3)
    ours = soft_token_loss(logits, torch.tensor([[0.5, 0.5, 0, 0, 0]]), matching, 1)
    binary = soft_token_loss(logits, torch.tensor([[1.0, 1, 0, 0, 0]]), matching, 1)
    assert float(ours) == pytest.approx(math.log(5))
    assert float(binary) == pytest.approx(2 * math.log(5))


def test_box_losses_by_hand():
    predicted = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]])
    truth = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.3, 0.2, 0.5, 0.4]])
    matching = Matching(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    distance, overlap = box_losses(predicted, truth, matching, 2)
    assert float(distance) == pytest.approx(0.1 / 2)  # the second is 0.1 too far left
    # Second: intersection 0.1 x 0.2, union 0.06, hull 0.3 x 0.2 = 0.06: GIoU is IoU, one third.
    assert float(overlap) == pytest.approx((0 + 1 - 1 / 3) / 2, abs=1e-6)


def test_contrastive_loss_equals_plain_loops():
    """MDETR, equations 1 and 2, as sums over boxes and over tokens."""
    generator = torch.Generator().manual_seed(0)
    queries, tokens = (torch.randn(2, n, 4, generator=generator) for n in (5, 6))
    queries, tokens = queries / queries.norm(dim=-1, keepdim=True), tokens / tokens.norm(dim=-1, keepdim=True)
    token_map = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    matching = Matching(torch.tensor([0, 0, 1]), torch.tensor([2, 4, 0]), torch.tensor([1, 0, 2]))
    positive = {(e, q): token_map[b] for e, q, b in as_sets(matching)}
    boxes = words = 0.0
    for (e, q), own in positive.items():
        scores = [float(queries[e, q] @ tokens[e, t]) / 0.07 for t in range(6)]
        normaliser = math.log(sum(math.exp(s) for s in scores))
        boxes += sum(normaliser - s for s, o in zip(scores, own, strict=True) if o) / int(own.sum())
    for e in range(2):
        for t in range(6):
            own_queries = [q for (f, q), own in positive.items() if f == e and own[t]]
            if own_queries:
                scores = [float(queries[e, q] @ tokens[e, t]) / 0.07 for q in range(5)]
                normaliser = math.log(sum(math.exp(s) for s in scores))
                words += sum(normaliser - scores[q] for q in own_queries) / len(own_queries)
    found = contrastive_alignment_loss(queries, tokens, token_map, matching, 3)
    assert float(found) == pytest.approx((boxes + words) / 2 / 3, rel=1e-5)


def test_divergence_by_hand():
    target = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[0.25, 0.25], [0.25, 0.25]], [[0.0, 0.0], [0.0, 0.0]]])
    predicted = torch.tensor([0.25, 0.25, 0.25, 0.25]).log().view(1, 2, 2).repeat(3, 1, 1)
    assert map_divergence(target, predicted).tolist() == pytest.approx([math.log(2), 0.0, 0.0], abs=1e-6)


def test_mean_over_phrases_by_hand():
    """Phrases of example 0: 1 and 3; of example 1: none; of example 2: 4, and one left out."""
    losses = torch.tensor([1.0, 3.0, 4.0, 100.0])
    found = mean_over_phrases(losses, torch.tensor([0, 0, 2, 2]), torch.tensor([1.0, 1, 1, 0]), 3)
    assert float(found) == pytest.approx((2 + 0 + 4) / 3)
    assert float(mean_over_phrases(losses[:0], torch.zeros(0, dtype=torch.int64), losses[:0], 2)) == 0


EXAMPLES = [game(target=2), replace(game("bare"), phrases=()), game("b", seed=1)]


@torch.no_grad()
def test_the_aligners_losses_are_its_maps_divergences():
    model = small_vilt()
    batch = model.preprocess(EXAMPLES)
    targets = make_targets(batch)
    output = model(batch)
    losses = aligner_losses(output, batch, targets, LossWeights(3.0, 1.0))
    truth = point_maps(targets.points, batch.valid, (96, 32))
    assert float(losses["task"]) == pytest.approx(3 * float(map_divergence(truth, output.log_task).mean()))
    each = map_divergence(box_maps(targets, 4, batch.valid, (96, 32)), output.log_phrases)
    expected = ((each[0] + each[1]) / 2 + 0 + (each[2] + each[3]) / 2) / 3
    assert float(losses["phrases"]) == pytest.approx(float(expected), rel=1e-6)


@torch.no_grad()
def test_flattened_layers_give_the_sum_over_layers():
    model = small_mdetr()
    batch = model.preprocess(EXAMPLES)
    targets, output = make_targets(batch), model(batch)
    losses = mdetr_losses(output, batch, targets, LossWeights(5.0, 1.0))
    assert set(losses) == {"task", "tokens", "boxes", "giou", "contrastive"}
    summed = dict.fromkeys(losses, 0.0)
    for layer in range(3):
        one = slice(layer, layer + 1)
        part = replace(
            output,
            token_logits=output.token_logits[one],
            boxes_cxcywh=output.boxes_cxcywh[one],
            projected_queries=output.projected_queries[one],
        )
        for name, value in mdetr_losses(part, batch, targets, LossWeights(0.0, 1.0)).items():
            summed[name] += float(value)
    distance = (output.task_point - targets.points).abs().sum(1).mean()
    assert float(losses["task"]) == pytest.approx(5 * float(distance))
    for name in ("tokens", "boxes", "giou", "contrastive"):
        assert float(losses[name]) == pytest.approx(summed[name], rel=1e-5)


@torch.no_grad()
def test_processes_together_have_the_losses_of_their_whole_batch(monkeypatch):
    """One process has three boxes and another one: both divide by 2, and their mean is the loss over all four."""
    model = small_mdetr()
    first, second = game("a"), game("b", seed=1)
    examples = [first, replace(second, phrases=second.phrases[:1])]

    def losses(given):
        batch = model.preprocess(given)
        return mdetr_losses(model(batch), batch, make_targets(batch), LossWeights(5.0, 1.0))

    whole = losses(examples)
    boxes = len(make_targets(model.preprocess(examples)).boxes)
    assert boxes_a_process(make_targets(model.preprocess(examples))) == boxes == 4
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.fill_(boxes))
    shares = [losses([example]) for example in examples]
    for name, value in whole.items():
        assert float(shares[0][name] + shares[1][name]) / 2 == pytest.approx(float(value), rel=1e-5)
    boxes = 1
    assert boxes_a_process(make_targets(model.preprocess(examples))) == 1  # at least


@torch.no_grad()
def test_mdetr_trains_on_rows_that_sum_to_one_and_on_binary_ones_as_the_study_did():
    model = small_mdetr(decoder_layers=1)
    batch = model.preprocess(EXAMPLES)
    targets, output = make_targets(batch), model(batch)
    rows = torch.zeros(len(targets.boxes), 20)
    rows[:, : batch.phrase_tokens.shape[1]] = batch.phrase_tokens[targets.box_phrase]
    count = len(targets.boxes)
    losses = {}
    annotated = torch.zeros(len(batch), dtype=torch.bool)
    annotated[targets.box_example] = True
    assert not annotated.all()
    everyone = torch.ones_like(annotated)
    for name, positive, counted in (("whole", rows / rows.sum(1, keepdim=True), annotated), ("binary", rows, everyone)):
        inputs = (output.token_logits[0], output.boxes_cxcywh[0], targets.boxes, positive, targets.box_example)
        losses[name] = float(soft_token_loss(output.token_logits[0], positive, match(*inputs), count, counted))
    found = mdetr_losses(output, batch, targets, LossWeights(0.0, 1.0))
    assert float(found["tokens"]) == pytest.approx(losses["whole"])
    assert losses["whole"] != pytest.approx(losses["binary"], rel=0.1)
    paper = objective_for(settings("mdetr", task=False, losses="paper"))
    assert float(paper(output, batch, targets)["tokens"]) == pytest.approx(losses["binary"])


@torch.no_grad()
def test_paper_contrasts_the_tokens_that_the_originals_look_up():
    """A span that begins at a blank is looked up in the first caption, which has none there."""
    model = small_mdetr()
    phrase = replace(game().phrases[0], spans=((5, 10),))  # " disc"
    second = replace(game("b", seed=1), phrases=(phrase,))
    first = replace(game("a"), caption="whatever stands here", phrases=())
    batch = model.preprocess([first, second])
    output, paper = model(batch), make_targets(batch, "paper")
    assert batch.phrase_tokens.any()
    assert not torch.equal(paper.contrasted, batch.phrase_tokens)
    losses = [
        mdetr_losses(output, batch, t, LossWeights(0.0, 1.0))["contrastive"] for t in (make_targets(batch), paper)
    ]
    assert float(losses[0]) != pytest.approx(float(losses[1]), rel=1e-3)


@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
@pytest.mark.parametrize("examples", [EXAMPLES, [EXAMPLES[1]]], ids=["some", "no boxes"])
@pytest.mark.parametrize(("task", "grounding"), [(True, True), (True, False), (False, True)])
def test_gradients_are_finite_and_only_of_what_is_asked(build, examples, task, grounding):
    model = build()
    batch = model.preprocess(examples)
    losses = objective_for(settings(model.config.model, task=task, grounding=grounding))(
        model(batch), batch, make_targets(batch)
    )
    assert ("task" in losses) == task
    assert (len(losses) > int(task)) == grounding
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    if model.config.model == "mdetr":
        assert any("sdr_head" in name for name in gradients) == task
        boxes_learn = grounding and len(examples) > 1
        assert any("bbox_embed" in name for name in gradients) == boxes_learn
        assert any("contrastive" in name for name in gradients) == boxes_learn


def test_weights_that_learn_nothing_are_refused():
    for task, grounding in ((0.0, 0.0), (-1.0, 1.0), (1.0, -0.5)):
        with pytest.raises(BadInput, match=f"loss weights {task} and {grounding}: one must be above 0, none below"):
            LossWeights(task, grounding)


@pytest.mark.parametrize("losses", ["corrected", "paper"])
def test_an_example_without_annotation_says_nothing_of_its_objects(losses):
    """Paper: it has none, unless the whole batch is without."""
    model = small_mdetr()
    annotated, bare = game("a"), replace(game("b", seed=1), phrases=())
    for given, told in (([annotated, bare], losses == "paper"), ([bare, bare], False)):
        batch = model.preprocess(given)
        output = model(batch)
        output.token_logits.retain_grad()
        parts = objective_for(settings("mdetr", task=False, losses=losses))(output, batch, make_targets(batch, losses))
        torch.stack(list(parts.values())).sum().backward()
        assert bool(output.token_logits.grad[:, 1].any()) == told


def test_without_auxiliary_losses_the_last_decoder_layer_alone_learns():
    model = small_mdetr()
    batch = model.preprocess([game("a")])
    output = model(batch)
    for tensor in (output.token_logits, output.boxes_cxcywh, output.projected_queries):
        tensor.retain_grad()
    parts = objective_for(settings("mdetr", task=False, auxiliary=False))(output, batch, make_targets(batch))
    torch.stack(list(parts.values())).sum().backward()
    for tensor in (output.token_logits, output.boxes_cxcywh, output.projected_queries):
        assert tensor.grad[-1].any()
        assert not tensor.grad[:-1].any()
