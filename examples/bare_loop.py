"""A training loop of one's own, put together from trainwell's parts: what `fit` does, without `fit`."""

import sys

import torch
from torch.nn import functional as F

import trainwell as tw

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
data = tw.load("digits")
mean, std = tw.data.statistics(data.train)
train = tw.data.Batches(data.train, 64, mean=mean, std=std, shuffle=True, drop_last=True, seed=0)
val = tw.data.Batches(data.val, 256, mean=mean, std=std)

tw.random.seed_everything(0, "init")
model = tw.models.create("resnet8", num_classes=len(data.classes), in_chans=1)
rate = tw.schedules.warmup(tw.schedules.cosine(3e-3, steps=epochs * len(train)), steps=50)
optimizer = tw.optim.AdamW(tw.optim.no_decay_groups(model, weight_decay=0.05), lr=rate)
stopping = tw.train.EarlyStopping(patience=10, mode="max")

for epoch in range(epochs):
    model.train()
    for x, y in train.epoch(epoch):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in val)
    stopping.update(right / len(data.val), at=epoch)
    if stopping.should_stop(at=epoch):
        break
print(f"best accuracy on validation: {stopping.best:.3f}, after epoch {stopping.best_at + 1}")
