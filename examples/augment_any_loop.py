"""Augmentation in a loop of one's own: batches of uint8 tensors from a plain `DataLoader`, two ways to draw.

Either torch's generator draws (`aug(images)`; here with `--torch`), or each draw is a function of the seed, the epoch
and the sample's number: the same for any batch size, number of workers or restart. For that the dataset returns the
number too.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import trainwell as tw

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
KEYED = "--torch" not in sys.argv
SEED, TRAINED = 0, 1_000


class Digits(Dataset):
    """scikit-learn's digits as uint8, with the number of each."""

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels * 255 / 16, dtype=torch.uint8).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels)

    def __len__(self):
        return TRAINED

    def __getitem__(self, number):
        return self.images[number], self.labels[number], number


torch.manual_seed(SEED)
data = Digits()
loader = DataLoader(data, batch_size=50, shuffle=True)
scale = data.images[:TRAINED].double() / 255
mean, std = (scale.mean().item(),), (scale.std().item(),)  # one a channel
aug = tw.augment.none(rotate=10, translate=0.05, stretch=0.1, contrast=0.2, padding_mode="zeros", mean=mean, std=std)

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(EPOCHS):
    for images, labels, numbers in loader:
        keys = tw.random.keys(tw.random.key(SEED, "augment", epoch), numbers) if KEYED else None
        x = aug(images, keys=keys)  # or aug(images): float32, changed, normalised
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

images, labels = data.images[TRAINED:], data.labels[TRAINED:]
with torch.no_grad():
    plain = model(aug.off()(images)).softmax(1)  # off: no draws, the same normalisation
averaged = tw.ensemble.marginalize(model, images, crops=[aug.off(), *tw.augment.samples(aug, 16)]).probabilities
for name, probabilities in (("images as they are", plain), ("and 16 draws, averaged", averaged)):
    print(f"right on digits not seen, {name}: {(probabilities.argmax(1) == labels).double().mean():.3f}")
