"""A run on disk: predictions from it, and runs that come from strangers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import trainwell as tw

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of two kinds, of many sizes: red ones and blue ones."""
    root = tmp_path_factory.mktemp("photos")
    for label, colour in {"blue": (40, 60, 200), "red": (210, 50, 40)}.items():
        (root / label).mkdir()
        for number in range(30):
            size = RNG.integers(20, 60, 2)
            noise = RNG.integers(-30, 30, (*size, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                root / label / f"{number}.png"
            )
    (root / "red" / "notes.txt").write_text("no image")
    (root / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return tw.fit(folder, out=tmp_path_factory.mktemp("runs") / "colours", model="resnet8", img_size=24, epochs=8,
                  folds=1, batch_size=16, threads=1, quiet=True)  # fmt: skip


def test_it_learns_and_says_what_it_left_out(run):
    assert run.result["test_accuracy"] == 1.0
    assert {item["path"] for item in run.info["skipped"]} == {"red/notes.txt", "red/broken.png"}


def test_a_folder_files_and_arrays_give_the_same_predictions(run, folder):
    files = sorted((folder / "red").glob("*.png"))
    whole = run.predict(folder / "red")
    assert [item.path for item in whole.skipped] == [
        str(folder / "red" / "broken.png"),
        str(folder / "red" / "notes.txt"),
    ]
    assert set(whole.labels) == {"red"}
    assert min(whole.confidences) > 0.5
    one = run.predict([file for file in files if "broken" not in file.name])
    assert np.abs(one.outputs - whole.outputs).max() < 1e-2  # bf16, other batches
    np.testing.assert_allclose(whole.outputs.sum(1), 1, atol=1e-5)


def test_a_folder_is_read_as_fit_reads_it(run, folder, tmp_path):
    (tmp_path / "here" / ".thumbs").mkdir(parents=True)
    shutil.copy(folder / "red/1.png", tmp_path / "here/.thumbs/1.png")
    shutil.copy(folder / "red/1.png", tmp_path / "here/1.png")
    (tmp_path / "here/linked").symlink_to(folder / "blue", target_is_directory=True)
    (tmp_path / "here/circle").symlink_to(tmp_path / "here", target_is_directory=True)
    found = run.predict(tmp_path / "here")
    assert len(found.names) == 31
    assert not any(".thumbs" in name for name in found.names)


def test_one_picture_is_one_sample(run, folder):
    picture = Image.open(folder / "red/1.png")
    assert run.predict(picture).labels == ["red"]
    assert len(run.predict(file for file in [folder / "red/1.png"]).labels) == 1
    with pytest.raises(tw.InputError, match=r"give one image as image\[None\]"):
        run.predict(np.asarray(picture))
    with pytest.raises(tw.InputError, match="nothing to predict"):
        run.predict(None)


def test_predictions_of_a_grey_model_on_coloured_files(tmp_path):
    digits = tw.fit("digits", folds=1, out=tmp_path / "run", epochs=6, threads=1, quiet=True)
    image = tw.load("digits").images[0]
    Image.fromarray(np.repeat(image, 3, axis=2)).save(tmp_path / "zero.png")
    assert digits.predict(tmp_path / "zero.png").labels == ["0"]


def test_what_cannot_be_predicted_is_one_clear_line(run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    for what, message in [
        (tmp_path / "a.jpg", "no image could be read .*a.jpg"),
        (tmp_path / "gone.jpg", "no file .*gone.jpg"),
        ([], "nothing to predict"),
        (np.zeros((2, 4, 4), np.float64), "images must be uint8"),
    ]:
        with pytest.raises(tw.InputError, match=message):
            run.predict(what)


def test_the_model_is_the_one_that_was_kept(run):
    state = load_file(run.path / "model.safetensors")
    model = tw.Run(run.path).model
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def _copy(run, tmp_path, **info):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    described = json.loads((copy / "run.json").read_text())
    described["model"] |= info
    (copy / "run.json").write_text(json.dumps(described))
    return copy


def test_a_run_from_a_stranger_runs_no_code(run, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef make(**k): pass\n")
    copy = _copy(run, tmp_path, name="evil:make")
    with pytest.raises(tw.InputError, match="is code"):
        _ = tw.Run(copy).model
    (copy / "result.json").unlink()
    recipe = (copy / "recipe.toml").read_text().replace('model = "resnet8"', 'model = "evil:make"')
    (copy / "recipe.toml").write_text(recipe)
    with pytest.raises(tw.InputError, match="is code"):
        tw.resume(copy, quiet=True)
    assert not (tmp_path / "pwned").exists()


def test_a_model_by_the_name_of_a_function_runs_where_its_user_names_it(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text("from torch import nn\ndef make(in_features): return nn.Linear(in_features, 2)\n")
    monkeypatch.chdir(tmp_path)
    x, y = RNG.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    made = tw.fit((x, y), folds=1, out="run", model="nets:make", epochs=2, quiet=True)
    assert tw.Run("run", "nets:make").predict(x).outputs.shape == (60, 2)
    with pytest.raises(tw.InputError, match="is 'nets:make', not 'other:make'"):
        tw.Run("run", "other:make").predict(x)
    (made.path / "result.json").unlink()
    with pytest.raises(tw.InputError, match="is code, 'nets:make'.*--model nets:make"):
        tw.resume("run", data=(x, y), quiet=True)
    assert tw.resume("run", data=(x, y), model="nets:make", quiet=True).result["epochs"] == 2


def test_a_model_of_ones_own_must_be_given_for_its_weights(tmp_path):
    x, y = RNG.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    made = tw.fit((x, y), folds=1, out=tmp_path / "run", model=nn.Linear(3, 2), epochs=2, quiet=True)
    expected = made.predict(x).outputs
    with pytest.raises(tw.InputError, match=r"model of yours; give it: Run\(path, model="):
        tw.Run(tmp_path / "run").predict(x)
    assert (tw.Run(tmp_path / "run", nn.Linear(3, 2)).predict(x).outputs == expected).all()


def test_weights_that_do_not_fit_or_are_damaged_are_named(run, tmp_path):
    copy = _copy(run, tmp_path, num_classes=7)
    with pytest.raises(tw.InputError, match=r"model\.safetensors does not fit the model resnet8 .*fc\.weight"):
        _ = tw.Run(copy).model
    (copy / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(tw.InputError, match=r"model\.safetensors does not fit"):
        _ = tw.Run(copy).model
    save_file({"a": torch.ones(1)}, copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    with pytest.raises(tw.InputError, match="no model yet; go on with"):
        _ = tw.Run(copy).model


def test_no_run_and_a_damaged_one_are_told_apart(run, tmp_path):
    with pytest.raises(tw.InputError, match="holds no run"):
        tw.Run(tmp_path)
    copy = _copy(run, tmp_path)
    (copy / "run.json").write_text("{")
    with pytest.raises(tw.InputError, match=r"run\.json is damaged"):
        tw.Run(copy)


def test_a_coloured_array_on_a_grey_model_is_seen_as_the_file_would_be(tmp_path):
    digits = tw.fit("digits", folds=1, out=tmp_path / "run", epochs=2, threads=1, quiet=True)
    picture = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert (digits.predict(picture[None]).outputs == digits.predict(tmp_path / "a.png").outputs).all()
