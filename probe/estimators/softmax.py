"""Logistic regression of many problems at once: its objective over blocks of rows, and what preconditions it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from probe.estimators.blocks import gram
from probe.estimators.vectors import Grid

_WIDEST = 2048  # columns of a Gram matrix that is still worth its decomposition


class SoftmaxObjective:
    """Mean cross entropy + strength / 2 x squared weights, of points ``[A, K (D + 1)]``: D weights, then an intercept.

    K is 1 for two classes. Rows are read as they are: the standardisation of each problem is folded into its weights,
    so that the problems of a site share one product with each block, whatever rows they are trained on.
    """

    def __init__(self, grid: Grid, columns: int):
        self.grid, self.columns = grid, columns
        device = grid.weight.device
        site, task, strength = torch.tensor(list(grid.cells()), device=device).T
        self.site, self.task, self.strength = site, task, grid.strength[strength]

    def __call__(self, points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[A]`` and gradients ``[A, K (D + 1)]``; what ``lbfgs.minimise`` asks for."""
        points = points.view(len(points), self.columns, -1)
        strength = self.strength[problems]
        loss, gradient = torch.empty_like(strength), torch.empty_like(points)
        for site in self.site[problems].unique().tolist():
            here = (self.site[problems] == site).nonzero()[:, 0]
            loss[here], gradient[here] = self._site(site, points[here], self.task[problems[here]])
        weights = points[:, :, :-1]
        loss += strength / 2 * weights.square().sum((1, 2))
        gradient[:, :, :-1] += strength[:, None, None] * weights
        return loss, gradient.flatten(1)

    def _site(self, site: int, points: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropies ``[A]`` and their gradients ``[A, K, D + 1]`` of problems of one site."""
        count, columns, _ = points.shape
        mean, scale = self.grid.mean[site, task, None], self.grid.scale[site, task, None]  # [A, 1, D]
        folded = points[:, :, :-1] / scale
        offset = points[:, :, -1] - (folded * mean).sum(2)
        folded = folded.flatten(0, 1)  # [A K, D]
        loss = torch.zeros(count, dtype=torch.float64, device=points.device)
        slope, level = torch.zeros_like(folded), torch.zeros_like(offset)
        for part, rows in self.grid.sites[site].parts(count * columns):
            scores = torch.addmm(offset.view(-1, 1), folded, rows.mT).view(count, columns, -1)
            target, weight = self.grid.target[:, part][task], self.grid.weight[:, part][task]
            losses, residual = _cross_entropy(scores, target, weight)
            loss += losses
            slope.addmm_(residual.flatten(0, 1), rows)
            level += residual.sum(2)
        gradient = (slope.view(count, columns, -1) - level[:, :, None] * mean) / scale
        return loss.float(), torch.cat([gradient, level[:, :, None]], 2)


def _cross_entropy(scores: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross entropies ``[A]`` of scores ``[A, K, n]``, and their gradient; target, weight: ``[A, n]``."""
    if scores.shape[1] == 1:
        scores = scores[:, 0]
        losses = F.softplus(scores) - target * scores
        return (weight * losses).sum(1), (weight * (scores.sigmoid() - target))[:, None]
    normaliser = scores.logsumexp(1)
    target = target[:, None]
    losses = normaliser - scores.gather(1, target)[:, 0]
    residual = (scores - normaliser[:, None]).exp_()
    residual.scatter_add_(1, target, torch.full_like(residual[:, :1], -1.0))
    return (weight * losses).sum(1), residual * weight[:, None]


class KroneckerInverse:
    """The inverse of C (x) G + strength x I, which is the Hessian of SoftmaxObjective at weights of zero: C is the
    covariance of one label drawn with the classes' frequencies, and G the mean of z z'. Elsewhere the Hessian is
    bounded by such a product (Böhning 1992), and L-BFGS learns the difference.

    G is decomposed once a site; its eigenvectors serve every task and strength.
    """

    def __init__(self, objective: SoftmaxObjective):
        self.objective, grid = objective, objective.grid
        union = grid.weight.amax(0)
        union = union / union.sum()
        found = [
            torch.linalg.eigh(gram(site, union, mean.mean(0), scale.mean(0), torch.float32).float())
            for site, mean, scale in zip(grid.sites, grid.mean, grid.scale, strict=True)
        ]
        self.sizes = [values.clamp_min(0) for values, _ in found]
        self.axes = [vectors for _, vectors in found]
        frequency = class_frequency(grid, objective.columns)
        covariance = torch.diag_embed(frequency) - frequency[:, :, None] * frequency[:, None]
        self.label_sizes, self.label_axes = torch.linalg.eigh(covariance)

    @classmethod
    def worthwhile(cls, grid: Grid) -> bool:
        """Whether it costs less than the steps that it saves."""
        count, width = grid.sites[0].shape
        return width <= min(count, _WIDEST)

    def __call__(self, vectors: Tensor, problems: Tensor) -> Tensor:
        """Times vectors ``[A, K (D + 1)]``."""
        objective = self.objective
        task, strength = objective.task[problems], objective.strength[problems]
        label_axes = self.label_axes[task]
        label_sizes = self.label_sizes[task].clamp_min(0)[:, :, None]  # [A, K, 1]
        turned = label_axes.mT @ vectors.view(len(vectors), objective.columns, -1)
        # Scores that rise alike for all classes change no probability: no curvature, and nothing to divide by.
        turned[:, :, -1:] /= label_sizes.clamp_min(1e-3 * float(self.label_sizes.max()))
        sites = objective.site[problems]
        for site in sites.unique().tolist():
            here = (sites == site).nonzero()[:, 0]
            sizes = label_sizes[here] * self.sizes[site] + strength[here, None, None]
            turned[here, :, :-1] = turned[here, :, :-1] @ self.axes[site] / sizes @ self.axes[site].mT
        return (label_axes @ turned).flatten(1)


def class_frequency(grid: Grid, columns: int) -> Tensor:
    """Share of each class in the rows of each task ``[T, K]``; of the second of two classes, ``[T, 1]``."""
    classes = range(columns) if columns > 1 else [1]
    return torch.stack([(grid.weight * (grid.target == number)).sum(1) for number in classes], 1)
