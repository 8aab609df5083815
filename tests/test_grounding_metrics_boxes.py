import numpy as np
import pytest
import torch

from grounding.errors import BadInput
from grounding.metrics.boxes import PROTOCOLS, best_of, pad_boxes, ranked_ious, recall_at, to_canvas

# Two truth boxes side by side, 0.2 x 0.4 each, with a gap of 0.2; prediction: the left one and the gap.
TRUTH = np.array([[[0.0, 0.0, 0.2, 0.4], [0.4, 0.0, 0.6, 0.4]]])
PREDICTED = np.array([[[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.6, 0.4], [0.7, 0.7, 0.9, 0.9]]])


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("any", [0.08 / 0.16, 0.08 / 0.24, 0.0]),
        ("merged", [0.16 / 0.24, 1.0, 0.0]),
        ("all", [0.08 / 0.24, 0.16 / 0.24, 0.0]),
    ],
)
def test_protocols_by_hand(protocol, expected):
    for mode, sizes in (("corrected", None), ("paper", np.array([[100, 100]]))):
        ious = ranked_ious(PREDICTED, TRUTH, protocol, mode, sizes)
        np.testing.assert_allclose(ious[0], expected, atol=1e-7)


def test_paper_rounds_to_pixels_and_clips():
    # On 10 x 10 pixels 0.26 is 3 pixels and 0.25 rounds half to even, to 2; -0.3 is clipped to 0.
    predicted, truth = np.array([[[-0.3, 0.0, 0.26, 1.0]]]), np.array([[[0.0, 0.0, 0.25, 1.0]]])
    assert ranked_ious(predicted, truth, "any", "paper", [[10, 10]]).item() == pytest.approx(2 / 3)
    assert ranked_ious(predicted, truth, "any").item() == pytest.approx(0.25 / 0.56)


def test_boxes_that_round_away_give_zero_not_nan():
    tiny = np.array([[[0.5, 0.5, 0.5001, 0.5001]]])
    for protocol in PROTOCOLS:
        assert ranked_ious(tiny, tiny, protocol, "paper", [[10, 10]]).item() == 0
        assert ranked_ious(tiny, tiny, protocol).item() == pytest.approx(1)


def test_a_box_in_another_candidate_has_no_overlap():
    other = np.array([[False, True, False]])
    for protocol in PROTOCOLS:
        ious = ranked_ious(PREDICTED, TRUTH, protocol, other_image=other)
        assert ious[0, 1] == 0
        assert ious[0, 0] == ranked_ious(PREDICTED, TRUTH, protocol)[0, 0] > 0


def test_canvas_stacks_candidates_along_the_height():
    box = torch.tensor([0.1, 0.2, 0.3, 0.6], dtype=torch.float64)
    canvas = to_canvas(box, torch.tensor(2), torch.tensor(4))
    assert canvas.tolist() == pytest.approx([0.1, 0.55, 0.3, 0.65])


def random_problem(rng, phrases=40, ranked=7):
    def draw(*shape):
        return np.sort(rng.random((*shape, 2, 2)), axis=-2).reshape(*shape, 4)

    return draw(phrases, ranked), pad_boxes([draw(n) for n in rng.integers(1, 5, phrases)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_order_of_phrases_and_of_truth_boxes_does_not_matter(protocol):
    rng = np.random.default_rng(0)
    predicted, truth = random_problem(rng)
    ious = ranked_ious(predicted, truth, protocol)
    order = rng.permutation(len(truth))
    torch.testing.assert_close(ranked_ious(predicted[order], truth[order], protocol), ious[order])
    torch.testing.assert_close(ranked_ious(predicted, truth.flip(1), protocol), ious)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scaling_and_mirroring_do_not_matter(protocol):
    predicted, truth = random_problem(np.random.default_rng(1))
    ious = ranked_ious(predicted, truth, protocol)
    scale = torch.tensor([3.0, 0.5, 3.0, 0.5], dtype=torch.float64)
    predicted = torch.as_tensor(predicted)
    torch.testing.assert_close(ranked_ious(predicted * scale, truth * scale, protocol), ious)

    def mirror(boxes):
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack([1 - x2, y1, 1 - x1, y2], -1)

    torch.testing.assert_close(ranked_ious(mirror(predicted), mirror(truth), protocol), ious)


def test_one_truth_box_makes_the_protocols_equal():
    predicted, _ = random_problem(np.random.default_rng(2))
    ious = [ranked_ious(predicted, predicted[:, 3:4], protocol) for protocol in PROTOCOLS]
    torch.testing.assert_close(ious[0], ious[1])
    torch.testing.assert_close(ious[0], ious[2])
    assert torch.all(ious[0][:, 3] > 1 - 1e-12)


def test_ranking_decides_which_box_counts():
    ious = torch.tensor([[0.2, 0.7], [0.6, 0.1]], dtype=torch.float64)
    assert best_of(ious, 1).tolist() == [0.2, 0.6]
    assert best_of(ious).tolist() == [0.7, 0.6]
    assert recall_at(ious, 1) == 0.5
    assert recall_at(ious, 2) == 1.0
    assert recall_at(ious, 2, threshold=0.7) == 0.5


def test_an_iou_of_exactly_one_half_is_a_hit_wherever_it_is():
    corners = np.random.default_rng(3).random((200, 1, 2)) * 0.5
    predicted = np.concatenate([corners, corners + np.array([0.2, 0.1])], -1)
    truth = np.concatenate([corners, corners + np.array([0.2, 0.2])], -1)
    assert recall_at(ranked_ious(predicted, truth)) == 1.0
    assert recall_at(ranked_ious(predicted, truth), threshold=0.5001) == 0.0


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="protocol 'best' is unknown; accepted: all, any, merged"):
        ranked_ious(PREDICTED, TRUTH, "best")
    with pytest.raises(BadInput, match="sizes"):
        ranked_ious(PREDICTED, TRUTH, "any", "paper")
    with pytest.raises(BadInput, match=r"\(2, 3, 4\)"):
        ranked_ious(np.repeat(PREDICTED, 2, 0), TRUTH)
    with pytest.raises(BadInput, match="no truth boxes"):
        pad_boxes([np.zeros((0, 4))])
    with pytest.raises(BadInput, match="k 0"):
        best_of(torch.zeros(1, 1), 0)
