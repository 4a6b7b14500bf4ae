"""Presets of augmentation, each against none, and test-time averaging against one look: at one and three budgets.

    python bench/augmentation.py cifar10/train [--jobs 2] [--budgets 1 3]

The evidence task is `rate_decay.py`'s, with Adam and a cosine at the rate that was best there. Averaged are the ten
views of `shifts`, of the same test images and the same model. Rows are appended as runs end: stop it, and start it
again at will.
"""

from evidence import run_budgets

PRESETS = {name: f"lr=0.03 model=resnet8 augment={name}" for name in ("none", "light", "standard", "strong")}

if __name__ == "__main__":
    run_budgets(__doc__, PRESETS, "augmentation.csv", average="shifts")
