"""Presets of augmentation, each against none, and test-time averaging against one look: at one and three budgets.

    python bench/augmentation.py cifar10/train [--jobs 2] [--budgets 1 3]

The evidence task is `rate_decay.py`'s, with Adam and a cosine at the rate that was best there. Averaged are the ten
views of `shifts`, of the same test images and the same model. Rows are appended as runs end: stop it, and start it
again at will.
"""

from evidence import EPOCHS, SETTINGS, arguments, run

PRESETS = ("none", "light", "standard", "strong")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 3], help="in multiples of 40 epochs")
    options = parser.parse_args()
    for budget in options.budgets:
        more = "" if budget == 1 else f"-{budget}x"
        recipes = [
            f"{name}{more}: optimizer=adam schedule=cosine lr=0.03 model=resnet8 epochs={EPOCHS * budget} "
            f"{SETTINGS.replace('augment=none', f'augment={name}')}"
            for name in PRESETS
        ]
        run(options, options.folder / "augmentation.csv", recipes, options.seeds, average="shifts")


if __name__ == "__main__":
    main()
