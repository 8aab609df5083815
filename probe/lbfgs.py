"""L-BFGS over many independent problems at once: one batched evaluation serves all of them.

Two-loop recursion after Nocedal and Wright, *Numerical Optimization* (2006), algorithm 7.4, with a backtracking
line search (their algorithm 3.1) and a step length of its own for every problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Precondition = Callable[[Tensor, Tensor], Tensor]

SUFFICIENT_DECREASE = 1e-4
MOST_TRIALS = 20


@dataclass(frozen=True)
class Minimum:
    """Where each of J problems ended: point ``[J, n]``, loss ``[J]``, iterations int64 ``[J]``."""

    point: Tensor
    loss: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class _Pair:
    """A step s and the change y of the gradient along it ``[A, n]``; inverse: 1 / s·y ``[A]``, 0 where the curvature is
    not positive (the pair is ignored); length: s·y / y·Hy ``[A]``, H being where the inverse Hessian starts from."""

    step: Tensor
    change: Tensor
    inverse: Tensor
    length: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor, shaped: Tensor) -> _Pair:
        """The pair; shaped: H y."""
        product = (step * change).sum(1)
        usable = product > 1e-10 * (change * change).sum(1)
        product = torch.where(usable, product, 1.0)
        length = product / (change * shaped).sum(1).clamp_min(1e-20)
        return cls(step, change, torch.where(usable, 1 / product, 0.0), length)

    def take(self, going: Tensor) -> _Pair:
        """Those of some problems (a mask)."""
        return _Pair(self.step[going], self.change[going], self.inverse[going], self.length[going])


def minimise(
    objective: Objective,
    start: Tensor,
    max_iter: int = 200,
    tol: float = 1e-5,
    history: int = 10,
    precondition: Precondition | None = None,
) -> Minimum:
    """Minimise J smooth functions of n variables, each from its row of ``start`` ``[J, n]``.

    objective: (points ``[A, n]``, problem numbers int64 ``[A]``) -> (losses ``[A]``, gradients ``[A, n]``); it is
    asked only about problems that are not finished. A problem is finished when three steps in a row each lower its
    loss by less than ``tol`` relative to it, when no step lowers it, or after ``max_iter`` steps.
    precondition: (vectors ``[A, n]``, problem numbers) -> vectors times something near the inverse Hessian, symmetric
    and positive. With it a problem is also finished as soon as the next step promises less than ``tol``.
    """
    shape = precondition or _unshaped
    point = start.clone()
    problems = torch.arange(len(start), device=start.device)
    loss, gradient = objective(point, problems)
    final_loss, iterations = loss.clone(), torch.zeros_like(problems)
    memory: list[_Pair] = []
    slow = torch.zeros_like(problems)
    current = point
    direction = -shape(gradient, problems)
    if precondition is None:  # nothing is known of the curvature: a unit step is the safest first try
        direction = direction / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for _ in range(max_iter):
        moved, new_loss, new_gradient = _search(objective, current, loss, gradient, direction, problems)
        change = new_gradient - gradient
        memory = [*memory[-(history - 1) :], _Pair.of(moved - current, change, shape(change, problems))]
        decrease = loss - new_loss
        slow = torch.where(decrease <= tol * loss.abs().clamp_min(1e-12), slow + 1, 0)
        current, loss, gradient = moved, new_loss, new_gradient
        point[problems], final_loss[problems] = current, loss
        iterations[problems] += 1
        direction = _direction(gradient, memory, shape, problems)
        going = (slow < 3) & (decrease > 0)
        if precondition is not None:
            # Half of it is the decrease of a quadratic with this gradient and inverse Hessian.
            going &= -(gradient * direction).sum(1) / 2 > tol * loss.abs()
        if not going.any():
            break
        if not going.all():
            problems, current, loss, gradient, direction, slow = (
                values[going] for values in (problems, current, loss, gradient, direction, slow)
            )
            memory = [pair.take(going) for pair in memory]
    return Minimum(point, final_loss, iterations)


def _unshaped(vectors: Tensor, problems: Tensor) -> Tensor:
    """No preconditioner."""
    return vectors


def _direction(gradient: Tensor, memory: list[_Pair], shape: Precondition, problems: Tensor) -> Tensor:
    """Minus the inverse Hessian estimate times the gradient ``[A, n]`` (algorithm 7.4)."""
    direction = -gradient
    weights = []
    for pair in reversed(memory):
        weight = pair.inverse * (pair.step * direction).sum(1)
        direction = direction - weight[:, None] * pair.change
        weights.append(weight)
    length = torch.ones_like(gradient[:, 0])
    for pair in memory:
        length = torch.where(pair.inverse > 0, pair.length, length)
    direction = shape(direction, problems) * length[:, None]
    for pair, weight in zip(memory, reversed(weights), strict=True):
        direction = direction + (weight - pair.inverse * (pair.change * direction).sum(1))[:, None] * pair.step
    return direction


def _search(
    objective: Objective, point: Tensor, loss: Tensor, gradient: Tensor, direction: Tensor, problems: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backtrack each problem to a step of sufficient decrease; one that finds none stays where it is."""
    slope = (gradient * direction).sum(1)
    length = torch.ones_like(loss)
    found = (point.clone(), loss.clone(), gradient.clone())
    open_ = torch.arange(len(loss), device=loss.device)
    for _ in range(MOST_TRIALS):
        trial = point[open_] + length[open_, None] * direction[open_]
        trial_loss, trial_gradient = objective(trial, problems[open_])
        target = loss[open_] + SUFFICIENT_DECREASE * length[open_] * slope[open_]
        good = trial_loss <= target  # false for NaN
        chosen = open_[good]
        for values, new in zip(found, (trial, trial_loss, trial_gradient), strict=True):
            values[chosen] = new[good]
        open_, missed = open_[~good], trial_loss[~good]
        if not len(open_):
            break
        # Minimum of the parabola through the loss, its slope and the trial, kept within [0.1, 0.5] of the step.
        bend = missed - loss[open_] - length[open_] * slope[open_]
        shrink = -0.5 * length[open_] * slope[open_] / bend
        length[open_] *= torch.nan_to_num(shrink, nan=0.1).clamp(0.1, 0.5)
    return found
