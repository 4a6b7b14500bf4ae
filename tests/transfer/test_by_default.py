"""What pretrained model there is without being asked for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import trainwell as tw
from trainwell.errors import InputError
from trainwell.images import Images
from trainwell.transfer import embedded, load_backbone
from trainwell.transfer.by_default import PHOTOGRAPHS, by_default

RNG = np.random.default_rng(0)


def _smooth(count, height, width):
    """Pictures with low frequencies, as photographs have them."""
    coarse = RNG.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    )


def _chosen(images, rows=None, fails=False):
    asked, said = [], []

    def load(source):
        asked.append(source)
        if fails:
            raise InputError("there is no network")
        return source

    found = by_default(images, np.arange(len(images)) if rows is None else rows, load, said.append)
    assert all("\n" not in line for line in said)
    return found, asked, " ".join(said)


@pytest.mark.parametrize(("side", "source", "why"), [
    (8, None, "from scratch: in images of 8 pixels"), (15, None, "from scratch"),
    (16, "embedded", "small images"), (32, "embedded", "small images"), (63, "embedded", "small images"),
    (64, PHOTOGRAPHS, "photographs"), (100, PHOTOGRAPHS, "photographs"),
])  # fmt: skip
def test_the_size_of_the_images_decides(side, source, why):
    found, asked, said = _chosen(Images.from_array(_smooth(5, side, side + 3)))
    assert (found, asked) == (source, [source] if source else [])
    assert why in said
    assert "--pretrained none" in said or source is None


def test_many_images_are_learnt_from_scratch():
    images = Images.from_array(_smooth(3, 32, 32))
    found, asked, said = _chosen(images, np.arange(20_000) % 3)
    assert (found, asked) == (None, [])
    assert "20,000 images are enough" in said


def test_without_a_network_it_is_from_scratch_and_says_how_to_help():
    found, asked, said = _chosen(Images.from_array(_smooth(3, 80, 80)), fails=True)
    assert (found, asked) == (None, [PHOTOGRAPHS])
    assert "there is no network" in said
    assert "--pretrained FILE" in said


def test_images_that_the_embedded_network_was_trained_on_are_recognised_even_saved_anew(monkeypatch):
    known = _smooth(200, 32, 32)
    monkeypatch.setattr(embedded, "_known", lambda: embedded.image_prints(known))
    anew = []
    for one in known:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "JPEG", quality=85)
        anew.append(np.asarray(Image.open(buffer)))
    images = Images.from_array(np.stack(anew))
    assert embedded.seen_before(images, np.arange(200)) > 0.7
    found, asked, said = _chosen(images)
    assert (found, asked) == (None, [])
    assert "trained on images like" in said
    others = Images.from_array(_smooth(200, 32, 32))
    assert embedded.seen_before(others, np.arange(200)) < 0.05
    assert embedded.seen_before(Images.from_array(_smooth(5, 40, 40)), np.arange(5)) == 0


def test_the_embedded_network_is_small_and_says_what_it_is():
    assert embedded.PATH.stat().st_size <= 1_000_000
    found = embedded.read_embedded()
    assert found.licence
    assert found.img_size == embedded.SIDE
    assert len(load_file(embedded.PATH)[embedded.PRINTS]) > 40_000
    assert embedded.PRINTS not in found.weights
    backbone = load_backbone("embedded", num_classes=3, in_chans=1)
    assert backbone.source == "embedded"
    assert backbone.model(torch.zeros(2, 1, 32, 32)).tolist() == [[0.0] * 3] * 2
    assert len(backbone.mean) == len(backbone.std) == 1


def test_fit_takes_it_for_small_images_unless_a_model_is_named(tmp_path, capsys):
    images, targets = _smooth(60, 24, 24), np.arange(60) % 2
    images[targets == 1] //= 4
    told = {"folds": 1, "transfer_minutes": 0.0, "threads": 1}
    run = tw.fit((images, targets), out=tmp_path / "run", **told)
    assert run.recipe.pretrained == run.info["backbone"]["source"] == "embedded"
    assert "the embedded network is trained further (--pretrained none" in capsys.readouterr().err
    assert run.result["test_accuracy"] == 1.0
    for fields in ({"model": "resnet8"}, {"pretrained": "none"}, {"transfer": "none"}):
        other = tw.fit((images, targets), out=tmp_path / "other", steps=1, overwrite=True, quiet=True, **told, **fields)
        assert other.recipe.pretrained == "none"
        assert other.info["backbone"] is None
