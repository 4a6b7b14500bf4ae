import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import trainwell as tw
from trainwell.data import table


@pytest.fixture
def photos(tmp_path):
    """Nine small pictures, each of its own noise, in a folder and in one below it."""
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0)
    for number in range(9):
        place = tmp_path / ("in" if number % 2 else ".") / f"p{number}.png"
        Image.fromarray(noise.integers(0, 256, (20, 20, 3), np.uint8)).save(place)
    return tmp_path


NAMES = ["p0.png", "in/p1.png", "p2.png", "in/p3.png", "p4.png", "in/p5.png", "p6.png", "in/p7.png", "p8.png"]


def _write(folder, text, name="labels.csv", encoding="utf-8"):
    (folder / name).write_text(text, encoding)
    return folder / name


def _csv(folder, columns, *rows):
    return _write(folder, "\n".join([columns, *rows]))


def _labels(listed):
    return dict(zip([file.path for file in listed.files], listed.targets.tolist(), strict=True))


def test_file_and_label(photos):
    path = _csv(photos, "file,label", *(f"{name},{'cat' if n < 5 else 'dog'}" for n, name in enumerate(NAMES)))
    assert _labels(table.read(path)) == {name: "cat" if n < 5 else "dog" for n, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("semicolons.csv", "filename;class\np0.png;cat\np2.png;dog"),
        ("tabs.tsv", "image\tlabel\np0.png\tcat\np2.png\tdog"),
        ("excel.csv", "\ufefffile,label\r\np0.png,cat\r\np2.png,dog\r\n"),
        ("quoted.csv", 'file,label,remark\n"p0.png","cat","one, two"\np2.png,dog,"a ""b"""'),
        ("nameless.csv", "p0.png,cat\np2.png,dog"),
        ("spaces.csv", "file , label\n p0.png , cat\n\np2.png, dog \n"),
        ("by_ending.csv", "what,photo\ncat,p0.png\ndog,p2.png"),
        ("without_ending.csv", "id,label\np0,cat\np2,dog"),
        ("windows.csv", "file,label\n.\\p0.png,cat\np2.png,dog"),
        ("objects.jsonl", '{"file_name": "p0.png", "label": "cat"}\n\n{"file_name": "p2.png", "label": "dog"}'),
    ],
)
def test_as_people_write_them(name, text, photos):
    assert sorted(_labels(table.read(_write(photos, text, name))).values()) == ["cat", "dog"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=2))
def test_any_text_is_a_label(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("any")
    labels = [word for word in words if word.strip()] or ["a"]
    for number in range(len(labels)):
        (folder / f"{number:04}.png").touch()
    lines = (json.dumps({"file": f"{n:04}.png", "label": word}) for n, word in enumerate(labels))
    listed = table.read(_write(folder, "\n".join(lines), "labels.jsonl"), task="classification")
    whole = listed.targets.dtype.kind == "i"
    assert listed.targets.tolist() == ([int(word) for word in labels] if whole else labels)


def test_whole_numbers_are_classes_and_others_a_regression(photos):
    assert table.read(_csv(photos, "file,y", "p0.png,3", "p2.png,12")).targets.dtype == np.int64
    assert table.read(_csv(photos, "file,y", "p0.png,3.5", "p2.png,12")).targets.tolist() == [3.5, 12.0]
    ages = table.read(_csv(photos, "file,y", "p0.png,3", "p2.png,12"), task="regression")
    assert ages.targets.dtype == np.float32
    assert table.read(_csv(photos, "file,y", "p0.png,3.5", "p2.png,1e-05")).targets.tolist() == [3.5, np.float32(1e-5)]


@pytest.mark.parametrize(
    "names", [("007", "12"), ("3_1", "3_2"), ("1E5", "2E5"), ("nan", "inf"), ("9" * 20, "8" * 5_000)]
)
def test_what_only_looks_like_a_number_is_a_name(names, photos):
    listed = table.read(_csv(photos, "file,y", f"p0.png,{names[0]}", f"p2.png,{names[1]}"))
    assert listed.targets.tolist() == list(names)


def test_a_label_that_is_no_number_is_named_by_its_file(photos):
    path = _csv(photos, "file,y", "p2.png,2.5", "p0.png,1.5", "p4.png,1e999")
    with pytest.raises(tw.InputError, match=r"the first is p4\.png"):
        tw.load(path)


def test_columns_of_which_each_line_has_one_are_classes_where_asked_for(photos):
    path = _csv(photos, "file,cat,dog", "p0.png,1,0", "p2.png,0,1")
    assert table.read(path, task="classification").targets.tolist() == ["cat", "dog"]
    assert table.read(path).labels == ("cat", "dog")
    with pytest.raises(tw.InputError, match="do not hold one 1 a line"):
        table.read(_csv(photos, "file,cat,dog", "p0.png,1,1", "p2.png,0,1"), task="classification")


def test_lists_of_numbers(photos):
    lines = '{{"file":"p0.png","label":{}}}\n{{"file":"p2.png","label":{}}}'
    listed = table.read(_write(photos, lines.format("[0.5, 1]", "[2, 3]"), "a.jsonl"))
    assert _labels(listed) == {"p0.png": [0.5, 1], "p2.png": [2, 3]}
    listed = table.read(_write(photos, lines.format("[4, 1]", "[2, 3]"), "a.jsonl"), task="regression")
    assert _labels(listed) == {"p0.png": [4, 1], "p2.png": [2, 3]}
    assert table.read(_write(photos, lines.format("[4, 1]", "[4]"), "a.jsonl")).labels == ("1", "4")  # labels 1 and 4
    with pytest.raises(tw.InputError, match="not in every line as many"):
        table.read(_write(photos, lines.format("[0.5, 1]", "[2]"), "a.jsonl"))


def test_names_as_cameras_and_people_write_them(photos):
    (photos / "p4.png").rename(photos / "p4.PNG")
    (photos / "p6").mkdir()
    lines = '{"file": "p4", "label": "a\u2028b"}\n{"file": "p6", "label": "c"}\n{"file": "in/../p0.png", "label": "d"}'
    listed = table.read(_write(photos, lines, "a.jsonl"))
    assert _labels(listed) == {"p4.PNG": "a\u2028b", "p6.png": "c", "p0.png": "d"}


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("bars.csv", "file,labels\np0.png,cat|dog\np2.png,\np4.png,dog", {}),
        ("spaces.csv", "file,tags\np0.png,cat dog\np2.png,\np4.png,dog", {"label_separator": " "}),
        ("ones.csv", "file,cat,dog\np0.png,1,1\np2.png,0,0\np4.png,0,1", {}),
        ("named.csv", "file,cat,dog,bird\np0.png,1,1,9\np2.png,0,0,9\np4.png,0,1,9", {"label_column": "cat,dog"}),
        ("lines.csv", "file,label\np0.png,cat\np0.png,dog\np2.png,\np4.png,dog", {"task": "multilabel"}),
        ("lists.jsonl", '{"file":"p0.png","labels":["dog","cat"]}\n{"file":"p2.png","labels":[]}\n'
         '{"file":"p4.png","labels":["dog"]}', {}),
    ],
)  # fmt: skip
def test_several_labels_a_file(name, text, options, photos):
    listed = table.read(_write(photos, text, name), **options)
    assert listed.labels == ("cat", "dog")
    assert _labels(listed) == {"p0.png": [1, 1], "p2.png": [0, 0], "p4.png": [0, 1]}


def test_several_numbers_a_file(photos):
    path = _csv(photos, "file,x,y", "p0.png,1,2.5", "p2.png,3,-1e2")
    assert _labels(table.read(path, label_column="x,y")) == {"p0.png": [1, 2.5], "p2.png": [3, -100]}


def test_parts_and_groups(photos):
    path = _csv(photos, "file,label,split,animal", "p0.png,a,Train,x", "p2.png,b,valid,", "p4.png,a,testing,y")
    listed = table.read(path, group_by="animal")
    assert listed.parts.tolist() == ["train", "val", "test"]
    assert listed.groups == ["x", "", "y"]


def test_what_is_left_out_is_named(photos):
    path = _csv(photos, "file,label", "p0.png,a", "gone.png,a", "p2.png,", ",b", "in,b", "p0.png,a", "p4.png,b")
    listed = table.read(path)
    assert [file.path for file in listed.files] == ["p0.png", "p4.png"]
    reasons = {one.path: one.reason for one in listed.skipped}
    assert reasons == {
        "gone.png": "no such file", "p2.png": "no label (line 4)", "line 5": "it names no file",
        "in": "not a regular file", "p0.png": "listed again (line 7)",
    }  # fmt: skip
    [unlisted] = listed.notices
    assert unlisted.paths == ("p6.png", "p8.png")  # p2.png is named already, those in in/ lie elsewhere


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, ["lists no files"]),
        ("file,label", {}, ["lists no files"]),
        ("file,label\nx.png,a", {}, ["x.png", "no such file", "--images"]),
        ("file,label\np0.png,a\np0.png,b", {}, ["p0.png", "as a (line 2)", "as b (line 3)", "multilabel"]),
        ("file,a,b\np0.png,x,y", {}, ["which column", "a, b", "--label-column"]),
        ("u,v\nx,y", {}, ["which column", "names the files", "--file-column"]),
        ("file,label\np0.png,a", {"label_column": "lable"}, ["no column 'lable'", "did you mean 'label'"]),
        ("file,label\np0.png,a", {"file_column": "flie"}, ["no column 'flie'", "did you mean 'file'"]),
        ("file,label\np0.png,a", {"group_by": "patient"}, ["no column 'patient'"]),
        ("file,label\np0.png,", {}, ["none of its files a label"]),
        ("file,label,label\np0.png,a,b", {}, ["two columns called 'label'"]),
        ("file,label\np0.png,a,b", {}, ["line 2", "3 cells", "2 columns"]),
        ('file,label\np0.png,"a', {}, ["no table"]),
        ("p0.png,a,b\np2.png,a,b", {}, ["first line that names its 3 columns"]),
        ("file,label,split\np0.png,a,train\np2.png,a,dev", {}, ["line 3", "'dev'", "train, val and test"]),
        ("file,label,split\np0.png,a,test", {}, ["no file to train on"]),
        ("file,label\np0.png,old", {"task": "regression"}, ["'old' is no number"]),
        ("file,a,b\np0.png,1,2", {"label_column": "a,b", "task": "multilabel"}, ["other numbers than 0 and 1"]),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(text, options, words, photos):
    with pytest.raises(tw.InputError) as told:
        table.read(_write(photos, text), **options)
    assert all(word in str(told.value) for word in ["labels.csv", *words])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("text", "words"), [("{", "line 1, is not JSON"), ("[1]", "line 1: expected is an object"),
                                             ('{"file":"p0.png","label":{"a":1}}', "neither text")])  # fmt: skip
def test_json_lines_that_are_none(text, words, photos):
    with pytest.raises(tw.InputError, match=words):
        table.read(_write(photos, text, "labels.jsonl"))


def test_another_encoding(photos):
    with pytest.raises(tw.InputError, match="not in UTF-8"):
        table.read(_write(photos, "file,label\np0.png,Bär", encoding="latin-1"))


# ------------------------------------------------------------------ through trainwell.load


def test_load_gives_the_pixels_and_the_labels(photos):
    path = _csv(photos, "file,label,split", *(f"{name},{'ab'[n % 2]},{('train', 'val', 'test')[n % 3]}"
                                              for n, name in enumerate(NAMES)))  # fmt: skip
    data = tw.load(path)
    assert data.classes == ("a", "b")
    assert data.sizes == {"train": 3, "val": 3, "test": 3}
    for row, name in enumerate(data.names):
        assert (data.images[row] == np.array(Image.open(photos / name))).all()
        assert data.classes[data.train.targets[row]] == "ab"[NAMES.index(name) % 2]


def test_images_elsewhere(photos, tmp_path_factory):
    home = tmp_path_factory.mktemp("elsewhere")
    path = _csv(home, "file,label", *(f"{name},{'ab'[n % 2]}" for n, name in enumerate(NAMES)))
    with pytest.raises(tw.InputError, match="no such file"):
        tw.load(path)
    assert tw.load(path, images=photos, val=2, test=2).sizes["train"] == 5


def test_strict_refuses_what_is_left_out(photos):
    path = _csv(photos, "file,label", "p0.png,a", "p2.png,b", "p4.png,a", "p6.png,b", "gone.png,a")
    with pytest.raises(tw.InputError, match=r"gone\.png: no such file"):
        tw.load(path, strict=True)
    assert [one.path for one in tw.load(path, val=1, test=1).skipped] == ["gone.png"]


def test_several_labels_have_names(photos):
    rows = (f"{name},{'|'.join(label for label, every in (('a', 2), ('b', 3)) if n % every == 0)}"
            for n, name in enumerate(NAMES))  # fmt: skip
    data = tw.load(_csv(photos, "file,labels", *rows), val=2, test=2)
    assert (data.task, data.classes) == ("multilabel", ("a", "b"))
    assert data.train.targets.sum(axis=0).tolist() == [5, 3]


def test_what_is_for_tables_is_refused_elsewhere():
    with pytest.raises(tw.InputError, match="label_column is for a table"):
        tw.load("digits", label_column="label")
    with pytest.raises(tw.InputError, match="task must be one of"):
        tw.load("digits", task="clasification")
