"""Hugging Face's Trainer that goes on in the middle of an epoch to the same bits; lines with a plus make it so.

Run it whole; then with `--stop-at 31`, which saves and ends the process at once, and then with `--resume`: the lines
and the last digest are those of the whole run. With `--plain` it is the Trainer by itself, and they are not.
"""

import argparse
import hashlib
import os
import random
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import trainwell as tw  # +

SEED, BATCH, EPOCHS = 0, 90, 3


class Digits(Dataset):
    """scikit-learn's digits with noise from three global generators."""

    def __init__(self):
        images, self.labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        image = torch.roll(self.images[row], random.randint(-1, 1), dims=-1) * np.random.uniform(0.8, 1.2)
        image = (image + 0.1 * torch.randn(1, 8, 8)).float()
        return {"images": image, "labels": int(self.labels[row]), "rows": int(row)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
        self.layers, self.step = nn.Sequential(*layers, nn.Linear(1024, 10)), 0

    def forward(self, images, labels, rows):
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        tell(self.step, rows, images, loss)
        return {"loss": loss}


class KeyedTrainer(Trainer):  # +
    def _get_train_sampler(self, train_dataset=None):  # +
        # Accelerate shares the batches among the processes, so the sampler must not.
        sampler = tw.data.KeyedSampler(self.train_dataset, seed=SEED, num_replicas=1, rank=0)  # +
        self.add_callback(KeyedSteps(sampler))  # +
        return sampler  # +


class KeyedSteps(TrainerCallback):  # +
    def __init__(self, sampler):  # +
        self.sampler = sampler  # +

    def on_epoch_begin(self, args, state, control, **others):  # +
        self.sampler.set_epoch(int(state.epoch))  # + with several processes Accelerate forgets it when it resumes

    def on_step_begin(self, args, state, control, **others):  # +
        tw.random.seed_everything(SEED, "step", state.global_step, args.process_index)  # +


class Stop(TrainerCallback):
    def __init__(self, options):
        self.options = options

    def on_step_begin(self, args, state, control, model=None, **others):
        getattr(model, "module", model).step = state.global_step + 1

    def on_save(self, args, state, control, **others):
        if state.global_step == self.options.stop_at:
            os._exit(0)  # as a crash does


def digest(*tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()[:8]


def tell(step, rows, images, loss):
    print(f"step {step}: samples {digest(rows)}, pixels {digest(images)}, loss {loss.item():.9g}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/resume_in_hf_trainer"))
    parser.add_argument("--stop-at", type=int, help="the step after which to save and to end the process")
    parser.add_argument("--resume", action="store_true", help="go on from what was saved")
    parser.add_argument("--plain", action="store_true", help="without trainwell")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    set_seed(SEED)
    arguments = TrainingArguments(
        output_dir=str(options.folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=0.1,
        lr_scheduler_type="cosine",
        dataloader_num_workers=options.workers,
        save_strategy="steps" if options.stop_at else "no",
        save_steps=options.stop_at or 1,
        seed=SEED,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    model, data = Model(), Digits()
    kind = Trainer if options.plain else KeyedTrainer  # +
    data = data if options.plain else tw.data.Keyed(data, SEED)  # +
    sgd = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    trainer = kind(model, arguments, train_dataset=data, callbacks=[Stop(options)], optimizer_cls_and_kwargs=sgd)
    trainer.train(resume_from_checkpoint=options.resume)
    print("the weights:", digest(*model.state_dict().values()))


if __name__ == "__main__":
    main()
