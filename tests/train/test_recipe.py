import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import InputError
from trainwell.train import Recipe

RECIPES = st.builds(
    Recipe,
    epochs=st.none() | st.integers(1, 10**6),
    lr=st.none() | st.floats(1e-12, 1e3),
    model=st.sampled_from(["auto", "mlp", "my.module:make"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    restore_best=st.booleans(),
    label_smoothing=st.floats(0, 0.99),
)


@given(recipe=RECIPES)
def test_toml_there_and_back(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert Recipe(**recipe.changes()) == recipe


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, "no field 'epoch' .did you mean 'epochs'"),
        ({"optimizer": "sdg"}, "one of adamw.*did you mean 'sgd'"),
        ({"epochs": 0}, "epochs must be at least 1; it is 0"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"minutes": float("inf")}, "minutes must be finite"),
        ({"threads": 10**6}, "threads must be at most"),
        ({"lr": "high"}, "lr must be a number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1"),
        ({"restore_best": "yes"}, "restore_best must be true or false"),
        ({"model": 3}, "model must be text"),
        ({"epochs": 3, "minutes": 2}, "epochs and minutes each say how long"),
        ({"patience": -1}, "patience must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_dict(fields)


@pytest.mark.parametrize(
    ("text", "message"), [("epoch = 3", "did you mean"), ("epochs = ", "no recipe"), (None, "no recipe")]
)
def test_a_bad_file_is_named(text, message, tmp_path):
    path = tmp_path / "r.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"r.toml: .*{message}"):
        Recipe.load(path)


def _resolve(recipe, **facts):
    sizes = {"train": 50_000, "val": 100, "test": 100}
    return recipe.resolve(**{"task": "classification", "sizes": sizes, "side": (32, 32), "images": True, **facts})


def test_resolve_makes_every_choice_and_keeps_what_was_given():
    resolved = _resolve(Recipe())
    assert (resolved.lr, resolved.weight_decay, resolved.monitor) == (2e-3, 0.05, "val_accuracy")
    assert resolved.model.startswith("resnet")
    assert resolved.epochs is not None
    assert resolved.img_size is None  # small images of one size stay as they are
    given = Recipe(
        lr=1.0,
        weight_decay=0.0,
        monitor="val_loss",
        monitor_mode="min",
        model="mlp",
        epochs=7,
        optimizer="sgd",
        batch_size=5,
    )
    assert _resolve(given) == given
    assert _resolve(resolved) == resolved


def test_resolve_by_the_data():
    assert _resolve(Recipe(), side=None).img_size == 224
    assert _resolve(Recipe(), side=(300, 200)).img_size == 224
    assert _resolve(Recipe(), images=False, side=None).model == "mlp"
    assert _resolve(Recipe(), task="regression").monitor == "val_loss"
    lengths = [_resolve(Recipe(preset=preset)).epochs for preset in ("quick", "good", "best")]
    assert lengths == sorted(set(lengths))
    assert _resolve(Recipe()).batch_size == 128
    for size, batch in ((1257, 128), (900, 64), (170, 16), (9, 16)):
        assert _resolve(Recipe(), sizes={"train": size, "val": 9, "test": 9}).batch_size == batch
    few = _resolve(Recipe(), sizes={"train": 200, "val": 9, "test": 9}).epochs
    assert few > lengths[1]  # little data is gone through more often
