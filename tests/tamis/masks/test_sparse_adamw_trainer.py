"""Training inside a mask through transformers' Trainer: resuming, accumulation, clipping, decay, bfloat16."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tamis.masks import sparse_adamw
from tamis.masks.sparse_adamw import RestrictedAdamW

ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 200, (8, 12), generator=torch.Generator().manual_seed(1))
]


class Stop(TrainerCallback):
    """Ends a training after a step."""

    def __init__(self, step):
        self.step, self.taken = step, 0

    def on_step_end(self, args, state, control, **rest):
        self.taken += 1
        control.should_training_stop = state.global_step >= self.step


def fit(folder, out, *, dtype=torch.float32, batch=2, accumulate=1, stop=10**9, resume=None, clip=0.05):
    """Train a mask of a twentieth for three epochs, with decay, clipping and a falling rate."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    generator = np.random.default_rng(0)
    some = [name for name, _ in model.named_parameters() if "layers.1.mlp.up" not in name]
    mask = {}
    for name in some:
        size = dict(model.named_parameters())[name].numel()
        mask[name] = np.sort(generator.choice(size, max(1, size // 20), replace=False)).astype(np.int32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    sparse_adamw.freeze(model, mask)
    sparse_adamw.mask_gradients(model, mask)
    optimizer = RestrictedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(pow, 0.9))
    args = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=3,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip,
        save_steps=5,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    counter = Stop(stop)
    trainer = Trainer(model, args, train_dataset=ROWS, optimizers=(optimizer, schedule), callbacks=[counter])
    trainer.train(resume_from_checkpoint=resume)
    assert counter.taken == trainer.state.global_step - (int(resume.rpartition("-")[2]) if resume else 0)
    return model, mask, before, trainer.state.log_history


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_through_the_trainer_unchosen_entries_keep_their_bits_for_three_epochs(toy_folder, tmp_path, dtype):
    model, mask, before, logs = fit(toy_folder, tmp_path, dtype=dtype)
    delta = sparse_adamw.extract_delta(model, before, mask)
    changed = sum(
        int((delta.values[name] != before[name].view(-1)[torch.from_numpy(mask[name])]).sum()) for name in mask
    )
    assert changed > 0.9 * sum(map(len, mask.values()))
    losses = [log["loss"] for log in logs if "loss" in log]
    assert sum(losses[8:]) < sum(losses[:4])  # the last epoch, and the first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_training_gives_the_bits_of_an_uninterrupted_one(toy_folder, tmp_path, dtype):
    whole = fit(toy_folder, tmp_path / "whole", dtype=dtype)[0]
    fit(toy_folder, tmp_path / "parts", dtype=dtype, stop=5)
    resumed = fit(toy_folder, tmp_path / "parts", dtype=dtype, resume=str(tmp_path / "parts/checkpoint-5"))[0]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_accumulated_gradients_train_as_a_large_batch_does(toy_folder, tmp_path):
    large = fit(toy_folder, tmp_path / "large", dtype=torch.float64, batch=4)[0]
    small = fit(toy_folder, tmp_path / "small", dtype=torch.float64, batch=1, accumulate=4)[0]
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_trainer_clips_by_the_norm_of_chosen_entries(toy_folder, tmp_path):
    _, mask, _, logs = fit(toy_folder, tmp_path, stop=1)
    start = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float32)
    rows = torch.stack([row["input_ids"] for row in ROWS[:2]])
    start(input_ids=rows, labels=rows).loss.backward()
    dense = {name: weight.grad.view(-1) for name, weight in start.named_parameters()}
    chosen = torch.cat([dense[name][torch.from_numpy(places)] for name, places in mask.items()])
    assert logs[0]["grad_norm"] == pytest.approx(float(chosen.norm()), rel=1e-4)
    assert float(torch.cat(list(dense.values())).norm()) > 2 * logs[0]["grad_norm"]
