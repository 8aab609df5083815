"""The Lightning module: one step of training, and the figures of validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from grounding.errors import RunFailed
from grounding.finetune.objectives import Objective
from grounding.finetune.settings import FinetuneSettings
from grounding.finetune.targets import Targets
from grounding.metrics.tasks import SDR_SIZE, SDR_SOLVED
from grounding.models.base import Batch, GroundingModel, Output

LOG_EVERY = 50
PROCESSES = "processes"  # of a state: how many shared its epochs


class FinetuneModule(lightning.LightningModule):
    """A model and its objective; AdamW, linear warm-up, then cosine or linear decay to zero at ``steps``."""

    def __init__(self, model: GroundingModel, objective: Objective, settings: FinetuneSettings, steps: int):
        super().__init__()
        self.model = model
        self.objective = objective
        self.settings = settings
        self.steps = steps
        warmup = settings.warmup
        self.warmup = round(warmup * steps) if warmup < 1 else int(warmup)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Random numbers of a batch (dropout) are a function of seed, step and process: resuming repeats them."""
        which = (self.settings.seed, self.global_step, index % self.settings.accumulate, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(which).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: tuple[Batch, Targets], index: int) -> Tensor:
        """Sum of the losses; raises RunFailed naming the examples if it is not finite."""
        inputs, targets = batch
        losses = self._losses(self.model(inputs), inputs, targets)
        loss = torch.stack(list(losses.values())).sum()
        self._check_finite(loss, "loss", inputs)
        self.log_dict({f"train/{name}": part for name, part in losses.items()})
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/learning_rate", self.settings.learning_rate * self.rate_at(self.global_step))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The norm of the gradient before it is clipped, at the steps that are logged."""
        if (self.global_step + 1) % LOG_EVERY == 0:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))

    def _check_finite(self, loss: Tensor, name: str, inputs: Batch) -> None:
        """Raise RunFailed naming step and examples, and what is kept, unless the loss is a number."""
        if math.isfinite(value := loss.item()):
            return
        ids = ", ".join(example.id for example in inputs.examples[:4])
        states = Path(self.trainer.checkpoint_callback.dirpath)  # type: ignore[union-attr, arg-type]
        kept = f"states from before it stay in {str(states)!r}" if states.exists() else "no state was saved before it"
        raise RunFailed(
            f"{name} is {value} at step {self.global_step} (batch of {ids}, ...); {kept}; the same settings come here "
            "again: try a lower learning_rate, or clip above 0, in another folder"
        )

    def _losses(self, output: Output, inputs: Batch, targets: Targets) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):  # losses and matching are in fp32 whatever the model is
            return self.objective(output, inputs, targets)

    def on_train_batch_end(self, *_: Any) -> None:
        """Validate after the last step too, where it falls between two validations."""
        if self.global_step == self.steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: tuple[Batch, Targets], index: int) -> None:
        """Loss, share of right answers, and of phrases whose point lies in one of their boxes.

        Raises RunFailed if the loss is not finite: before anything is saved, so that the last good state stays.
        """
        inputs, targets = batch
        output = self.model(inputs)
        loss = torch.stack(list(self._losses(output, inputs, targets).values())).sum()
        self._check_finite(loss, "dev/loss", inputs)
        in_bar = self.settings.monitored == "dev/loss"
        self.log("dev/loss", loss, prog_bar=in_bar, batch_size=len(inputs), sync_dist=True)
        self._log_share("dev/accuracy", answered_correctly(output, targets))
        self._log_share("dev/pointing", phrase_hits(output, targets))

    def _log_share(self, name: str, right: Tensor) -> None:
        """Log the share of what is right, of all batches together; nothing where no batch has any.

        Of several processes each logs it at every batch: at the end they wait for each other.
        """
        if len(right) or self.trainer.world_size > 1:
            share = right.float().mean() if len(right) else torch.zeros((), device=right.device)
            self.log(name, share, prog_bar=True, batch_size=len(right), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A state says how many processes shared the epochs: for another number it is another run."""
        checkpoint[PROCESSES] = self.trainer.world_size

    def configure_optimizers(self) -> Any:
        """AdamW without decay on norms and biases; backbone and text encoder may have rates of their own."""
        settings = self.settings
        groups = [
            {"params": parameters, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
            for (rate, decays), parameters in self._parameter_groups().items()
        ]
        fused = self.trainer.precision == "32-true"  # Lightning cannot clip the gradients of a fused one under autocast
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> dict[tuple[float, bool], list[nn.Parameter]]:
        """What is learned, by learning rate and by whether it decays (matrices do)."""
        settings = self.settings
        own = {"backbone": settings.learning_rate_backbone, "text_encoder": settings.learning_rate_text}
        parameters: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                rate = next((rate for part, rate in own.items() if rate and part in name.split(".")), None)
                key = (settings.learning_rate if rate is None else rate, parameter.ndim > 1)
                parameters.setdefault(key, []).append(parameter)
        return parameters

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return 1 - progress if self.settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning does not look inside our dataclasses."""
        return tuple(part.to(device, non_blocking=True) for part in batch)


def answered_correctly(output: Output, targets: Targets) -> Tensor:
    """bool, one an example with a task: the right candidate, or within 80 pixels of a 3712 x 800 panorama."""
    last = targets.candidates - 1
    chosen = (output.task_point[:, 1] * targets.candidates).long().minimum(last)
    meant = (targets.points[:, 1] * targets.candidates).long()
    scale = torch.tensor(SDR_SIZE, dtype=torch.float32, device=last.device)
    near = ((output.task_point - targets.points) * scale).norm(dim=1) < SDR_SOLVED
    return torch.where(last >= 0, chosen == meant, near)[targets.has_task]


def phrase_hits(output: Output, targets: Targets) -> Tensor:
    """bool, one an annotated phrase: its point lies in one of its boxes."""
    point = output.phrase_point[targets.box_phrase]
    inside = ((point >= targets.boxes[:, :2]) & (point <= targets.boxes[:, 2:])).all(1)
    hits = inside.new_zeros(len(output.phrase_point), dtype=torch.int64)
    hits.index_add_(0, targets.box_phrase, inside.long())
    return hits[targets.box_phrase.unique()] > 0
