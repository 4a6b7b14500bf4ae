"""Augmentation in `fit`: what it chooses, what it leaves behind, and averaging at test."""

import base64
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trainwell as tw
from trainwell.errors import InputError
from trainwell.train import augmentation
from trainwell.train.custom import Custom
from trainwell.train.prepare import prepared

RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (90, 12, 14, 3), dtype=np.uint8)
QUICK = {"folds": 1, "epochs": 1, "batch_size": 16, "threads": 1, "quiet": True, "model": "resnet8"}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder of two classes with names."""
    root = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(PHOTOS[:60]):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(named, tmp_path_factory):
    return tw.fit(named, out=tmp_path_factory.mktemp("runs") / "named", **QUICK)


def test_photographs_get_the_standard_one_and_a_sheet_of_it_lies_in_the_folder_and_in_the_report(run):
    assert run.recipe.augment == "standard"
    with Image.open(run.path / "augmentation.png") as sheet:
        assert sheet.size[1] > 500
        pixels = np.asarray(sheet.convert("RGB"))
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "What augmentation does" in page
    [shown] = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="a sheet', page)
    assert base64.b64decode(shown)[:4] == b"\x89PNG"
    assert pixels.std() > 10


@pytest.mark.parametrize("damage", [b"", b"no picture", "cut"])
def test_a_damaged_sheet_is_one_clear_line(named, tmp_path, damage):
    made = tw.fit(named, out=tmp_path / "run", **QUICK)
    sheet = made.path / "augmentation.png"
    sheet.write_bytes(sheet.read_bytes()[:2000] if damage == "cut" else damage)
    with pytest.raises(InputError, match=r"augmentation\.png: damaged"):
        made.report()


@pytest.mark.parametrize(
    ("targets", "chosen", "why"),
    [
        (np.array(["a", "B", "c"])[np.arange(90) % 3], "standard(flip=0.0)", "no flips, because classes called"),
        (np.arange(90) % 3, "standard(flip=0.0)", "augment='standard'"),
        (RNG.normal(size=90).astype(np.float32), "none", "a number may depend on place"),
    ],
    ids=["letters", "digits", "regression"],
)
def test_digits_and_letters_are_not_mirrored_and_numbers_are_left_alone_and_why_is_said(
    targets, chosen, why, tmp_path, capsys
):
    made = tw.fit((PHOTOS, targets), out=tmp_path / "run", **{**QUICK, "quiet": False})
    assert made.recipe.augment == chosen
    assert why in " ".join(capsys.readouterr().err.split())
    assert (made.path / "augmentation.png").exists() == (chosen != "none")


def test_features_have_none_and_refuse_one(tmp_path):
    x, y = RNG.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    assert tw.fit((x, y), out=tmp_path / "run", **{**QUICK, "model": "mlp"}).recipe.augment == "none"
    with pytest.raises(InputError, match="augment='light' changes images: leave it at 'auto' for feature vectors"):
        tw.fit((x, y), out=tmp_path / "other", augment="light", **{**QUICK, "model": "mlp"})


def test_an_augment_may_be_given_as_it_is_or_written_out_and_comes_back_from_the_file(named, tmp_path):
    amounts = tw.augment.light(rotate=5.0, scale=(0.9, 1.1))
    recipe = tw.Recipe(augment=amounts)
    assert recipe == tw.Recipe(augment="Augment(flip=0.5, crop=1.0, scale=(0.9, 1.1), translate=0.1, rotate=5.0)")
    recipe.save(tmp_path / "recipe.toml")
    assert tw.Recipe.load(tmp_path / "recipe.toml") == recipe
    one, other = (
        tw.fit(named, out=tmp_path / str(number), augment=given, **QUICK)
        for number, given in enumerate((amounts, recipe.augment))
    )
    assert (one.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()
    plain = tw.fit(named, out=tmp_path / "plain", augment="none", **QUICK)
    assert (one.path / "model.safetensors").read_bytes() != (plain.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("standart", "did you mean 'standard'?"),
        ("standard(rotate=999)", "rotate must be from 0 to 180"),
        (5, "augment"),
    ],
)
def test_what_is_no_augmentation_is_refused_before_anything_is_done(augment, message):
    with pytest.raises(InputError) as error:
        tw.Recipe(augment=augment)
    assert message in str(error.value)


SYMBOLS = [
    ["0", "1", "9", "none"],
    ["α", "β", "γ"],
    ["digit_0", "digit_1"],
    ["A_upper", "a_lower"],
    ["007", "42"],
    ["One", " two "],
    ["e\u0301", "a"],  # as folders on a Mac are called
]
NAMES = [
    ["cat", "dog"],
    ["c", "python"],
    ["100", "101"],
    ["+", "-"],
    ["0"],
    [],
    ["digit_", "_upper"],
    ["9" * 5000, "a"],
]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(classes, "standard(flip=0.0)") for classes in SYMBOLS] + [(classes, "standard") for classes in NAMES],
    ids=lambda value: str(value)[:30],
)
def test_classes_are_digits_or_letters_by_their_names_in_any_script(classes, expected):
    chosen, why = augmentation.chosen("classification", classes, True)
    assert chosen == expected
    assert ("no flips" in why) == (expected != "standard")


def test_only_training_sees_it(named):
    data = tw.load(named, quiet=True)
    recipe = tw.Recipe(augment="strong", model="resnet8", batch_size=8, threads=1)
    with prepared(data, recipe, Custom()) as trainer:
        mean, std = (torch.from_numpy(getattr(trainer.train, name)).view(3, 1, 1) for name in ("mean", "std"))
        for batches, plain in ((trainer.val, True), (trainer.train, False)):
            rows = batches.rows(0, 0)
            pixels = torch.from_numpy(np.stack([data.images[int(row)] for row in rows])).permute(0, 3, 1, 2)
            expected = (pixels / 255 - mean) / std
            assert torch.allclose(batches.batch(0, 0)[0].double(), expected, atol=1e-5) == plain


def test_predictions_averaged_over_views_are_their_mean(run):
    plain = run.predict(PHOTOS[:7]).outputs
    mirrored = run.predict(np.ascontiguousarray(PHOTOS[:7, :, ::-1])).outputs
    averaged = run.predict(PHOTOS[:7], average="flips")
    np.testing.assert_allclose(averaged.outputs, (plain + mirrored) / 2, atol=2e-2)  # bf16
    for average in ("ten-crop", "shifts", "multi-scale,samples:3"):
        outputs = run.predict(PHOTOS[:7], average=average, batch_size=3).outputs
        assert outputs.shape == (7, 2)
        np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-5)


def test_marginalize_does_the_same_with_a_runs_model_in_ones_own_code(run):
    pixels = RNG.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    model = run.model
    views = tw.augment.ten_crop(14, 16)
    mean, std = (torch.tensor(run.info[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    seen = torch.stack([view(x) for view in views])
    assert seen.shape[3:] == (14, 14)
    with torch.no_grad():
        expected = torch.stack([model(view).softmax(1) for view in seen]).mean(0)
    result = tw.ensemble.marginalize(model, x, crops=views)
    torch.testing.assert_close(result.probabilities.float(), expected, atol=1e-5, rtol=0)


def test_values_are_averaged_as_they_are_and_keep_their_shape(tmp_path):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.weight * x.mean((1, 2, 3))

    targets = RNG.normal(size=90).astype(np.float32)
    quick = {k: v for k, v in QUICK.items() if k != "model"}
    made = tw.fit((PHOTOS, targets), model=One(), out=tmp_path / "run", augment="Augment(flip=0.5)", **quick)
    plain, averaged = made.predict(PHOTOS[:5]).outputs, made.predict(PHOTOS[:5], average="flips").outputs
    assert averaged.shape == plain.shape == (5,)
    np.testing.assert_allclose(averaged, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("classes", "augment", "mirrored"),
    [
        (("0", "1"), "auto", False),
        (("0", "1"), "none", False),
        (("0", "1"), "standard", True),
        (("cat", "dog"), "none", True),
        (("cat", "dog"), "standard(flip=0.0)", False),
    ],
)
def test_mirror_images_are_averaged_over_where_training_showed_them_or_they_show_the_same(
    classes, augment, mirrored, tmp_path
):
    targets = np.array(classes)[np.arange(90) % 2]
    made = tw.fit((PHOTOS, targets), out=tmp_path / "run", augment=augment, precision="fp32", **QUICK)
    mean, std = (torch.tensor(made.info[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = (torch.from_numpy(PHOTOS[:9]).permute(0, 3, 1, 2) / 255 - mean) / std
    expected, other = (
        tw.ensemble.marginalize(made.model, x, crops=tw.augment.shifts(flip=flip)).probabilities.numpy()
        for flip in (mirrored, not mirrored)
    )
    averaged = made.predict(PHOTOS[:9], average="shifts").outputs
    np.testing.assert_allclose(averaged, expected, atol=1e-5)
    assert np.abs(averaged - other).max() > 1e-4
    assert len(made._views("shifts,ten-crop,multi-scale", (12, 14))[1]) == (70 if mirrored else 35)
    if mirrored:
        assert made.predict(PHOTOS[:9], average="flips").outputs.shape == (9, 2)
    else:
        with pytest.raises(InputError, match="mirror images, of which training showed none: take shifts, ten-crop"):
            made.predict(PHOTOS[:9], average="flips")


def test_numbers_that_may_depend_on_direction_are_not_averaged_over_mirror_images(tmp_path):
    made = tw.fit((PHOTOS, RNG.normal(size=90).astype(np.float32)), out=tmp_path / "run", **QUICK)
    assert made.predict(PHOTOS[:2], average="shifts").outputs.shape == (2,)
    with pytest.raises(InputError, match="mirror images, of which training showed none"):
        made.predict(PHOTOS[:2], average="flips")


def test_what_cannot_be_averaged_is_refused(named, run, tmp_path):
    x, y = RNG.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    features = tw.fit((x, y), out=tmp_path / "features", **{**QUICK, "model": "mlp"})
    with pytest.raises(InputError, match="average is for images, and the model was trained on features"):
        features.predict(x, average="flips")
    plain = tw.fit(named, out=tmp_path / "plain", augment="none", **QUICK)
    with pytest.raises(InputError, match="was trained without augmentation, of which there are no samples"):
        plain.predict(PHOTOS[:2], average="samples:2")
    with pytest.raises(InputError, match="did you mean 'ten-crop'"):
        run.predict(PHOTOS[:2], average="ten-crap")
    for average in (None, 5, ["flips"]):
        with pytest.raises(InputError, match="average is text, such as"):
            run.predict(PHOTOS[:2], average=average)
