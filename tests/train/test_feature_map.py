import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

import trainwell as tw
from some_digits import some_digits
from trainwell.data.dataset import Part
from trainwell.train.choice import Choice
from trainwell.train.custom import Custom
from trainwell.train.feature_map import ABOUT, FILE, write_feature_map
from trainwell.train.prepare import prepared
from trainwell.train.pretrained import read
from trainwell.train.recipe import Recipe
from trainwell.train.result import keep_best

TINY = {"batch_size": 32, "threads": 1, "precision": "fp32", "augment": "none"}


@pytest.fixture(scope="module")
def data():
    images, targets = some_digits([6, 7, 8, 9])
    return tw.load((images[:240], targets[:240]), val=60, test=100)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run on other digits."""
    out = tmp_path_factory.mktemp("before") / "run"
    return tw.fit(some_digits([0, 1, 2, 3, 4, 5]), out=out, model="resnet8", epochs=4, folds=1, quiet=True, **TINY)


@pytest.fixture(scope="module")
def begun(data, before, tmp_path_factory):
    """A run that trained all of that network further."""
    out = tmp_path_factory.mktemp("begun") / "run"
    return tw.fit(data, out=out, pretrained=str(before.path), transfer="all", epochs=3, quiet=True, **TINY)


@pytest.fixture(scope="module")
def cut(data, begun):
    """The trainer, at its end, of a network that was cut after its first of three stages."""
    backbone = read(begun.path, begun.info["backbone"], begun.info["model"])
    choice = Choice({}, {"transfer": "all"}, {"before": "layer2", "dimensions": 16})
    recipe = Recipe(epochs=2, pretrained="some", transfer="auto", **TINY)
    with prepared(data, recipe, Custom(backbone=backbone, choice=choice)) as trainer:
        trainer.run()
        keep_best(trainer)
        yield trainer


def _features(model, run, images):
    """What comes to the head, by torch alone."""
    mean, std = run.info["mean"][0], run.info["std"][0]
    x = ((torch.tensor(np.stack(images))[..., 0] / 255 - mean) / std)[:, None].float()
    with torch.no_grad():
        return tw.transfer.head_inputs(model.eval(), x).numpy()


def _mapped(folder):
    """Of a folder: the tensors, what is said, and which rows of the data the images are."""
    about = json.loads((folder / ABOUT).read_text())
    return load_file(folder / FILE), about, [int(name.split()[1]) for name in about["names"]]


def test_maps_keep_the_neighbours_of_both_models_features(data, before, begun):
    tensors, about, rows = _mapped(begun.path)
    assert about["trained"] == "nothing is frozen"
    assert about["part"] == "test"
    assert rows == sorted(data.test.indices.tolist())
    images = [data.images[row] for row in rows]
    for name, model in (("before", tw.Run(before.path).model), ("after", tw.Run(begun.path).model)):
        points = tensors[name].numpy()
        assert points.shape == (100, 2)
        assert np.abs(points).max() == 1
        near = trustworthiness(_features(model, begun, images), points, n_neighbors=8)
        assert near > 0.93  # 1 is perfect, 1/2 what places drawn at random have
    assert not np.allclose(tensors["before"], tensors["after"])


def test_classes_and_pictures_are_those_of_the_images(data, begun):
    tensors, _, rows = _mapped(begun.path)
    assert tensors["targets"].tolist() == data.test.targets[rows].tolist()
    predicted = begun.predict(np.stack([data.images[row][..., 0] for row in rows]))
    assert [data.classes[label] for label in tensors["predicted"]] == list(predicted.labels)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(tensors[str(number)], data.images[row])  # of 8 pixels a side, smaller than most


def test_where_nothing_below_the_head_is_trained_there_is_one_map(data, before, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), transfer="linear", quiet=True, **TINY)
    tensors, about, _ = _mapped(run.path)
    assert "before" not in tensors
    assert about["trained"] == "frozen: conv1, bn1, layer1, layer2, layer3"
    again = tw.fit(data, out=run.path, model="resnet8", epochs=1, overwrite=True, quiet=True, **TINY)
    assert not (again.path / FILE).exists()
    assert not (again.path / ABOUT).exists()


def test_a_cut_model_is_compared_with_the_pretrained_one_cut_there(data, cut, begun, before, tmp_path):
    write_feature_map(tmp_path, cut, data)
    tensors, _, rows = _mapped(tmp_path)
    model, images = tw.Run(before.path).model, [data.images[row] for row in rows]
    x = torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    x = (x - begun.info["mean"][0]) / begun.info["std"][0]
    [features] = tw.transfer.extract_features(model, [x], at=["layer1"]).values()
    assert trustworthiness(features.numpy(), tensors["before"].numpy(), n_neighbors=8) > 0.93


def test_it_is_the_same_again_and_leaves_the_model_as_it_was(data, cut, tmp_path):
    modes = [module.training for module in cut.model.modules()]
    weights = {name: value.clone() for name, value in cut.model.state_dict().items()}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(len(list(tmp_path.iterdir())))  # which is not looked at
        write_feature_map(tmp_path / name, cut, data)
    for name in (ABOUT, FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [module.training for module in cut.model.modules()] == modes
    assert all(value.equal(weights[name]) for name, value in cut.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in cut.model.modules())


def test_few_images_are_mapped_by_principal_components(data, cut, tmp_path):
    some = dataclasses.replace(data, test=dataclasses.replace(data.test, indices=data.test.indices[:9]))
    write_feature_map(tmp_path, cut, some)
    tensors, _, rows = _mapped(tmp_path)
    x, _ = next(iter(tw.data.Batches(
        Part(data.images, data.test.targets, np.array(rows)), 9, mean=cut.val.mean, std=cut.val.std,
    )))  # fmt: skip
    with torch.no_grad():
        features = tw.transfer.head_inputs(cut.model, x)
    features = features.flatten(2).mean(2) if features.ndim > 2 else features
    distances = pdist(tensors["after"]) / pdist(PCA(2).fit_transform(features.numpy()))
    np.testing.assert_allclose(distances, distances[0], rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_one_image_and_many_that_are_alike_lie_in_one_place(count, data, cut, tmp_path):
    part = dataclasses.replace(data.test, indices=np.repeat(data.test.indices[:1], count))
    write_feature_map(tmp_path, cut, dataclasses.replace(data, test=part))
    tensors, _, _ = _mapped(tmp_path)
    assert tensors["after"].shape == (count, 2)
    assert tensors["after"].isfinite().all()


def test_at_most_300_images_of_40_pixels_are_taken(cut, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (900, 20, 60), dtype=np.uint8)
    data = tw.load({"train": (images[:400], np.arange(400) % 4), "test": (images[400:], np.arange(500) % 4)})
    write_feature_map(tmp_path, cut, data)
    tensors, about, rows = _mapped(tmp_path)
    assert len(set(about["names"])) == len(tensors["after"]) == 300
    assert set(rows) < set(data.test.indices.tolist())
    assert tensors["0"].shape == (13, 40, 1)


def test_with_folds_the_validation_part_of_the_final_model_is_shown(before, tmp_path):
    images, targets = some_digits([6, 7, 8, 9])
    run = tw.fit((images[:90], targets[:90]), out=tmp_path / "run", pretrained=str(before.path), transfer="linear",
                 folds=2, quiet=True, **TINY)  # fmt: skip
    _, about, rows = _mapped(run.path)
    assert about["part"] == "validation"
    assert rows == sorted(load_file(run.path / "split.safetensors")["val"].tolist())
    assert not list(run.path.glob("folds/*/transfer.json"))


def test_numbers_have_no_classes_to_show(before, tmp_path):
    images, targets = some_digits([6, 7])
    data = tw.load((images[:120], targets[:120].astype(np.float32) + 0.5), val=30, test=30)
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), transfer="top1", epochs=1, quiet=True, **TINY)
    assert json.loads((run.path / ABOUT).read_text()) == {"trained": "frozen: conv1, bn1, layer1, layer2"}
    assert not (run.path / FILE).exists()
    assert "Frozen: conv1, bn1, layer1, layer2." in (run.path / "report.html").read_text("utf-8")
