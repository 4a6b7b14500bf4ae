"""A loop as in PyTorch's tutorials, which ten lines, those with a plus, let go on after a kill to the same bits.

Run it, kill it, run it again: the last line is that of a run that was never killed.
"""

import hashlib
import random
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import trainwell as tw  # +

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resume_any_loop")
SAVE_SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
EPOCHS = 5


class Digits(Dataset):
    """scikit-learn's digits with noise from three global generators."""

    def __init__(self):
        images, self.labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.roll(self.images[index], random.randint(-1, 1), dims=-1)
        image = image * np.random.uniform(0.8, 1.2) + 0.1 * torch.randn(1, 8, 8)
        return image.float(), int(self.labels[index])


def main():
    torch.manual_seed(0)
    data = Digits()
    data = tw.data.Keyed(data)  # +
    sampler = tw.data.KeyedSampler(data)  # +
    loader = DataLoader(data, batch_size=64, sampler=sampler, num_workers=2)  # + instead of shuffle=True
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(1024, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "sampler": sampler}  # +
    checkpoint = tw.train.Checkpoint(FOLDER, **parts)  # +
    step = checkpoint.load().get("step", 0)  # + instead of 0

    for epoch in sampler.epochs(EPOCHS):  # + instead of range(EPOCHS)
        for images, labels in sampler.batches(loader):  # + instead of loader
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            step += 1
            print(f"epoch {epoch + 1}, step {step}, loss {loss.item():.9g}", flush=True)
            checkpoint.every(SAVE_SECONDS, step=step)  # +
        scheduler.step()

    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    print(f"sha256 of the weights after {step} steps: {hashlib.sha256(weights).hexdigest()}")


if __name__ == "__main__":
    main()
