"""PyTorch Lightning that goes on in the middle of an epoch to the same bits; lines with a plus make it so.

Run it whole; then with `--stop-at 31`, which saves and ends the process at once, and then with `--resume`: the lines
and the last digest are those of the whole run. With `--plain` it is Lightning by itself, and they are not.
"""

import argparse
import hashlib
import os
import random
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

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
        return (image + 0.1 * torch.randn(1, 8, 8)).float(), int(self.labels[row]), int(row)


class Model(L.LightningModule):
    def __init__(self, options):
        super().__init__()
        self.options = options
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*layers, nn.Linear(1024, 10))

    def train_dataloader(self):
        if self.options.plain:
            return DataLoader(Digits(), BATCH, shuffle=True, num_workers=self.options.workers)
        data = tw.data.Keyed(Digits(), SEED)  # +
        sampler = tw.data.KeyedSampler(data, seed=SEED)  # +
        loader = DataLoader(data, BATCH, sampler=sampler, num_workers=self.options.workers)  # + instead of shuffle
        epoch, done = divmod(self.trainer.fit_loop.total_batch_idx + 1, len(loader))  # + batches that were learned from
        sampler.set_epoch(epoch, done * BATCH * self.trainer.world_size)  # +
        return loader

    def on_train_batch_start(self, batch, batch_idx):
        if self.options.stop_at and self.global_step == self.options.stop_at:
            os._exit(0)  # as a crash does
        if not self.options.plain:
            tw.random.seed_everything(SEED, "step", self.trainer.fit_loop.total_batch_idx, self.global_rank)  # +

    def training_step(self, batch, batch_idx):
        images, labels, rows = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        tell(self.global_step + 1, rows, images, loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def digest(*tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()[:8]


def tell(step, rows, images, loss):
    print(f"step {step}: samples {digest(rows)}, pixels {digest(images)}, loss {loss.item():.9g}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/resume_in_lightning"))
    parser.add_argument("--stop-at", type=int, help="the step after which to save and to end the process")
    parser.add_argument("--resume", action="store_true", help="go on from what was saved")
    parser.add_argument("--plain", action="store_true", help="without trainwell")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    L.seed_everything(SEED, workers=True, verbose=False)
    saver = ModelCheckpoint(options.folder, "last", every_n_train_steps=options.stop_at, enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[saver] if options.stop_at else [],
        enable_checkpointing=bool(options.stop_at),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model(options)
    trainer.fit(model, ckpt_path=options.folder / "last.ckpt" if options.resume else None)
    print("the weights:", digest(*model.state_dict().values()))


if __name__ == "__main__":
    main()
