"""`transformers.Trainer` whose data are optimiser steps, and what it shows and refuses meanwhile."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback

from tamis.language.encoding import Encoding
from tamis.training import steps


class TrainingError(ValueError):
    """An arm cannot be trained."""


class StepTrainer(Trainer):
    """A Trainer of which an item of the data is the rows of one optimiser step; it passes them by `steps.backward`."""

    def __init__(self, rows: Encoding, loss_per: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.rows = rows
        self.loss_per = loss_per

    def get_train_dataloader(self) -> DataLoader:
        """Return all steps, of which every process takes its share of the rows."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    def training_step(self, model: torch.nn.Module, inputs: Mapping[str, Any], *rest: Any) -> torch.Tensor:
        """Return the loss of a step, after its gradients are set."""
        model.train()
        share = {"rank": self.args.process_index, "of": self.args.world_size}
        return steps.backward(model, self.rows.pick(inputs["places"]), self.loss_per, **share)


class ArmProgress(ProgressCallback):
    """A bar on stderr with the arm's name and loss; stops the training at a loss that is not finite."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **rest)
        if self.training_bar is not None:  # of several processes one shows it
            self.training_bar.set_description(self.label)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Move the bar; no checkpoint after the last step, as the arm itself is written next."""
        super().on_step_end(args, state, control, **rest)
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Show the loss."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            if self.training_bar is not None:
                self.training_bar.close()
            raise TrainingError(
                f"arm {self.label}: the loss is {loss} at step {state.global_step} of {state.max_steps}; "
                "lower finetuning.learning_rate or set models.dtype: float32"
            )
        if self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{loss:.3f}")
