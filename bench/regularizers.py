"""Techniques against overfitting, each against none, on the evidence task: at one and at three times the budget.

    python bench/regularizers.py cifar10/train [--jobs 2] [--budgets 1 3]

The evidence task is `rate_decay.py`'s, with Adam and a cosine at the rate that was best there. Strengths are usual ones
and were not tuned, nor was the rate of the model without batch norm, a tenth of the others'. Run it from the
repository's folder. Rows are appended as runs end: stop it, and start it again at will.
"""

from evidence import run_budgets

TECHNIQUES = {
    "none": "lr=0.03 model=resnet8",
    "dropout": "lr=0.03 model=resnet8 drop_rate=0.3",
    "dropout-maps": "lr=0.03 model=resnet8 drop_map_rate=0.1",
    "dropconnect": "lr=0.03 model=resnet8 dropconnect=0.3",
    "fractional-pooling": "lr=0.03 model=bench.architectures:fractional",
    "stochastic-depth": "lr=0.03 model=resnet8 drop_path_rate=0.2",
    "label-smoothing": "lr=0.03 model=resnet8 label_smoothing=0.1",
    "mixup": "lr=0.03 model=resnet8 mixup=0.2",
    "cutmix": "lr=0.03 model=resnet8 cutmix=1.0",
    "l1": "lr=0.03 model=resnet8 l1=1e-5",
    "sam": "lr=0.03 model=resnet8 sam=0.05",
    "no-batch-norm": "lr=0.003 model=bench.architectures:without_batch_norm",
}

if __name__ == "__main__":
    run_budgets(__doc__, TECHNIQUES, "regularizers.csv")
