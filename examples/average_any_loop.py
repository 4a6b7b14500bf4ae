"""An average of the weights in a loop of one's own: EMA, batch norm's statistics anew, both weights validated.

The average is saved with the rest: run it, kill it, run it again, and it goes on where it was.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import trainwell as tw

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/average_any_loop")
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 10

pixels, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels))
trained, held_out = torch.utils.data.random_split(data, [1_000, 797], torch.Generator().manual_seed(0))

torch.manual_seed(0)
loader = DataLoader(trained, batch_size=50, shuffle=True)
once = DataLoader(trained, batch_size=250)  # what batch norm's statistics are computed from; any sizes will do
val = DataLoader(held_out, batch_size=250)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(1024, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # at a constant rate
ema = tw.ensemble.EMA(model, decay=0.98)
checkpoint = tw.train.Checkpoint(FOLDER, model=model, optimizer=optimizer, ema=ema)


@torch.no_grad()
def loss_on(batches):
    model.eval()
    return sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in batches) / len(held_out)


for epoch in range(checkpoint.load().get("epoch", 0), EPOCHS):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        ema.update()
    raw = loss_on(val)
    with ema.weights():  # and the statistics, which are put back too
        tw.ensemble.refresh_batchnorm(model, once)
        averaged = loss_on(val)
    print(f"epoch {epoch + 1}: loss on digits not seen: weights {raw:.6f}, their average {averaged:.6f}", flush=True)
    checkpoint.save(epoch=epoch + 1)

ema.copy_to_model()  # to hand it over
tw.ensemble.refresh_batchnorm(model, once)
print(f"handed over: loss {loss_on(val):.6f}")
