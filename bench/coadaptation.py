"""Co-adaptation with and without dropout: how much the held-out loss rises when single hidden units are silenced.

    python bench/coadaptation.py [--seeds 10] [--csv rows.csv]

A unit that others rely on is missed when it is gone. A network with two hidden layers learns 1,000 of scikit-learn's
digits, with dropout of 0 and of 0.5 behind each layer; the seed chooses the split, the weights and the noise, the same
for both. Then each unit of the last hidden layer is set to 0, one at a time, for all of the other 797 digits. Figures
are means over seeds with Student's 95 % intervals, and paired differences. The loss is the mean cross-entropy, in nats.
"""

import argparse
import statistics
from pathlib import Path

import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import trainwell as tw
from rows import write
from trainwell.models.mlp import MLP
from trainwell.regularize import evaluating, keyed

RATES = (0.0, 0.5)
TRAINED, EPOCHS, BATCH = 1_000, 100, 50
FIGURES = ("loss", "mean_rise", "largest_rise", "accuracy")


def trained(x: torch.Tensor, y: torch.Tensor, drop_rate: float, seed: int) -> MLP:
    """Returns a network that has learned these digits."""
    tw.random.seed_everything(seed)
    model = MLP(64, 10, hidden=(64, 64), batch_norm=False, drop_rate=drop_rate)
    steps = EPOCHS * len(x) // BATCH
    optimizer = tw.optim.AdamW(model.parameters(), lr=tw.schedules.cosine(3e-3, steps=steps), weight_decay=0.0)
    for epoch in range(EPOCHS):
        for number, few in enumerate(torch.from_numpy(tw.random.permutation(len(x), seed, epoch)).split(BATCH)):
            optimizer.zero_grad()
            with keyed(model, seed, epoch, number):
                cross_entropy(model(x[few]), y[few]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def silenced(model: MLP, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Returns the loss of the whole network, and how much it rises without one of the last hidden layer's units."""
    with evaluating(model):
        hidden = model.layers(model.flatten(x))
        whole, losses = model.fc(hidden), []
        for unit in range(hidden.shape[1]):
            without = hidden.clone()
            without[:, unit] = 0
            losses.append(float(cross_entropy(model.fc(without), y)))
    loss = float(cross_entropy(whole, y))
    return {
        "loss": loss,
        "mean_rise": statistics.mean(losses) - loss,
        "largest_rise": max(losses) - loss,
        "accuracy": float((whole.argmax(1) == y).double().mean()),
    }


def interval(values: list[float]) -> str:
    """Returns the mean with Student's 95 % interval."""
    mean = statistics.mean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    rows = []
    for seed in range(options.seeds):
        order = torch.from_numpy(tw.random.permutation(len(x), seed, "split"))
        learned, held_out = order[:TRAINED], order[TRAINED:]
        for drop_rate in RATES:
            model = trained(x[learned], y[learned], drop_rate, seed)
            rows.append({"drop_rate": drop_rate, "seed": seed, **silenced(model, x[held_out], y[held_out])})
    print(f"dropout {RATES[0]:g}; dropout {RATES[1]:g}; difference, paired by seed (n = {options.seeds})")
    for figure in FIGURES:
        first, second = ([row[figure] for row in rows if row["drop_rate"] == rate] for rate in RATES)
        difference = [b - a for a, b in zip(first, second, strict=True)]
        print(f"  {figure:12}  {interval(first)}   {interval(second)}   {interval(difference)}")
    if options.csv:
        write(options.csv, rows)


if __name__ == "__main__":
    main()
