"""Every bad input of the command line: one clear line, exit code 2, nothing lost, no traceback.

Each row of the table is a command, what is done to the folder before it, and what the line must say. The command runs
in a copy of a folder with data and runs, which is the same to the byte afterwards.
"""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import trainwell as tw
from trainwell.cli import main

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
TRAIN = "--epochs 1 --threads 1 --folds 1 --batch-size 8"
Arrange = Callable[[Path], object]


def _picture(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Data, a run that is done (`done`), and one that was interrupted (`cut`)."""
    here = tmp_path_factory.mktemp("prepared")
    for number in range(40):
        _picture(here / "photos" / "ab"[number % 2] / f"{number}.png")
    np.savez(here / "data.npz", x=X, y=Y)
    options = {"threads": 1, "folds": 1, "batch_size": 8, "quiet": True, "save_seconds": 0}
    tw.fit(here / "photos", out=here / "done", epochs=1, model="resnet8", **options)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tw.fit(here / "photos", out=here / "cut", epochs=2, model="resnet8", on_epoch_end=interrupt, **options)
    (here / "foreign").mkdir()
    (here / "foreign" / "thesis.txt").write_text("years of work")
    return here


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it, as working directory."""
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.name != "__pycache__" and path.suffix != ".pyc"
    }


def text(name: str, content: str) -> Arrange:
    return lambda here: (here / name).write_text(content, encoding="utf-8")


def damaged(name: str) -> Arrange:
    """Replaces the first file that fits by what is none of its kind."""
    return lambda here: next(here.glob(name)).write_bytes(b"\0rubbish")


def all_damaged(pattern: str) -> Arrange:
    return lambda here: [path.write_bytes(b"\0rubbish") for path in here.glob(pattern)]


def removed(*names: str) -> Arrange:
    return lambda here: [
        shutil.rmtree(path) if path.is_dir() else path.unlink() for name in names for path in here.glob(name)
    ]


def npz(**arrays: object) -> Arrange:
    return lambda here: np.savez(here / "bad.npz", **arrays)


def both(*acts: Arrange) -> Arrange:
    return lambda here: [act(here) for act in acts]


def changed(name: str, *keys: str, value: object) -> Arrange:
    """Changes one entry of a JSON file."""

    def act(here: Path) -> None:
        content = json.loads((here / name).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (here / name).write_text(json.dumps(content))

    return act


def own_data(act: Arrange) -> Arrange:
    """Makes the run `cut` one of the copy's own photos, and changes those."""
    return both(lambda here: changed("cut/run.json", "source", value=str(here / "photos"))(here), act)


def lines(name: str, count: int = 40, **cells: str) -> Arrange:
    def act(here: Path) -> None:
        rows = [f"photos/{'ab'[n % 2]}/{n}.png,{'ab'[n % 2]}" for n in range(count)]
        (here / name).write_text("\n".join(["file,label", *rows, *cells.values()]) + "\n")

    return act


def nothing(_: Path) -> None:
    pass


TABLE: list[tuple[str, Arrange, str]] = [
    # Words.
    ("", nothing, "give a command, one of fit, lr-range, predict, report, cache"),
    ("fti photos", nothing, "unknown command 'fti' (did you mean 'fit'?)"),
    ("--epochs 3", nothing, "the command comes first"),
    ("fit photos --epohcs 3", nothing, "unknown flag --epohcs (did you mean --epochs?)"),
    ("fit photos --epohcs=3", nothing, "unknown flag --epohcs (did you mean --epochs?)"),
    ("fit photos --zzz", nothing, "unknown flag --zzz"),
    ("fit photos -x", nothing, "unknown flag -x"),
    ("fit photos more", nothing, "'more' is one too many"),
    ("fit photos --quiet yes", nothing, "--quiet takes no value"),
    ("fit photos --quiet=yes", nothing, "--quiet takes no value"),
    ("fit photos --epochs", nothing, "--epochs lacks its value"),
    ("fit photos --epochs --quiet", nothing, "--epochs lacks its value"),
    ("fit photos --epochs many", nothing, "--epochs takes a whole number, not 'many'"),
    ("fit photos --epochs 1.5", nothing, "--epochs takes a whole number, not '1.5'"),
    ("fit photos --lr=fast", nothing, "--lr takes a number, not 'fast'"),
    ("fit photos --optimizer sdg", nothing, "--optimizer must be one of adamw, adam, nadam, radam, adamax, lion, sgd"),
    ("fit photos --schedule cosin", nothing, "or written out; it is 'cosin' (did you mean 'cosine'?)"),
    ("fit photos --schedule cosin(0.1,5)", nothing, "cosin"),
    ("fit photos --schedule step(0.1)", nothing, "every"),
    ("fit photos --schedule cosine(0.1,steps=0)", nothing, "steps is 0"),
    ("fit photos --schedule cosine(0.1,5) --lr 0.1", nothing, "says the rates itself: leave one of them out"),
    ("fit photos --schedule open('x')", nothing, "open"),
    ("lr-range photos --optimizer sdg", nothing, "--optimizer must be one of"),
    ("lr-range missing", nothing, "missing"),
    ("lr-range photos --out done/range.html", nothing, "done"),
    ("fit photos --save-seconds soon", nothing, "--save-seconds takes a number"),
    ("predict", nothing, "RUN is missing"),
    ("predict done", nothing, "give image files or folders"),
    ("predict done photos --format xml", nothing, "--format must be one of table, csv, json; it is 'xml'"),
    ("predict done photos --epochs 3", nothing, "unknown flag --epochs"),
    ("report", nothing, "RUN is missing"),
    ("report done cut", nothing, "'cut' is one too many"),
    ("cache --cleer", nothing, "unknown flag --cleer (did you mean --clear?)"),
    ("cache --clear --older-than-days -1", nothing, "older_than_days must be at least 0"),
    ("fit", nothing, "give a folder of class folders"),
    # Fields of the recipe.
    ("fit photos --epochs 0", nothing, "epochs must be at least 1; it is 0"),
    ("fit photos --epochs -3", nothing, "epochs"),
    ("fit photos --lr 0", nothing, "lr must be above 0"),
    ("fit photos --lr nan", nothing, "lr"),
    ("fit photos --lr inf", nothing, "lr must be finite"),
    ("fit photos --warmup 1", nothing, "warmup must be below 1"),
    ("fit photos --momentum -0.1", nothing, "momentum must be at least 0"),
    ("fit photos --label-smoothing 2", nothing, "label_smoothing must be below 1"),
    ("fit photos --drop-rate 1", nothing, "drop_rate must be below 1"),
    ("fit photos --batch-size 0", nothing, "batch_size must be at least 1"),
    ("fit photos --grad-accum-steps 0", nothing, "grad_accum_steps must be at least 1"),
    ("fit photos --threads 0", nothing, "threads must be at least 1"),
    ("fit photos --threads 99999", nothing, "threads must be at most"),
    ("fit photos --minutes 0", nothing, "minutes must be above 0"),
    ("fit photos --epochs 2 --steps 5", nothing, "epochs and steps each say how long to train"),
    ("fit photos --monitor val_f1", nothing, "monitor is 'val_f1'"),
    ("fit photos --monitor val_f1 --monitor-mode max", nothing, "monitor is 'val_f1', which is none of"),
    ("fit photos --device quantum", nothing, "the device 'quantum' cannot be used"),
    ("fit photos --device cuda:99", nothing, "the device 'cuda:99' cannot be used"),
    ("fit photos --model resnet19", nothing, "unknown model 'resnet19'"),
    ("fit photos --model nowhere:make", nothing, "the model 'nowhere:make' cannot be imported"),
    ("fit photos --model broken:make", text("broken.py", "def make(:"), "cannot be imported: SyntaxError"),
    ("fit photos --model empty:make", text("empty.py", ""), "the model 'empty:make' cannot be imported"),
    ("fit photos --model odd:make", text("odd.py", "def make(): return 1"), "must return a torch.nn.Module"),
    ("fit photos --model bad:make", text("bad.py", "def make(): 1 / 0"), "'bad:make' failed"),
    ("fit data.npz --model resnet8", nothing, "needs images"),
    (f"fit photos --model resnet8 {TRAIN} --batch-size 1", nothing, "batch norm needs at least 2 samples"),
    ("fit photos --img-size 0", nothing, "img_size must be at least 1"),
    # Recipe files.
    ("fit photos --recipe-file gone.toml", nothing, "gone.toml: no recipe can be read"),
    ("fit photos --recipe-file photos", nothing, "photos: no recipe can be read"),
    ("fit photos --recipe-file", nothing, "--recipe-file lacks its value"),
    ("fit photos --recipe-file r.toml", text("r.toml", "epochs = "), "r.toml: no recipe can be read"),
    ("fit photos --recipe-file r.toml", lambda here: (here / "r.toml").write_bytes(b"\xff"), "r.toml: no recipe"),
    ("fit photos --recipe-file r.toml", text("r.toml", "epoch = 3"), "no field 'epoch' (did you mean 'epochs'?)"),
    ("fit photos --recipe-file r.toml", text("r.toml", 'epochs = "3"'), "epochs must be a whole number"),
    ("fit photos --recipe-file r.toml", text("r.toml", "epochs = true"), "epochs must be a whole number"),
    ("fit photos --recipe-file r.toml", text("r.toml", "lr = nan"), "lr must be"),
    ("fit photos --recipe-file r.toml", text("r.toml", "epochs = 1\nsteps = 1"), "epochs and steps each"),
    # Folders of images.
    ("fit gone", nothing, "there is no file or folder"),
    ("fit empty", lambda here: (here / "empty").mkdir(), "holds no folders: expected is one folder a class"),
    ("fit photos/a", nothing, "20 images but no folders"),
    ("fit one", lambda here: _picture(here / "one/a/1.png"), "has one class, 'a'"),
    ("fit photos", lambda here: (here / "photos/c").mkdir(), "c holds no images"),
    ("fit parts", both(lambda here: shutil.copytree(here / "photos", here / "parts/train"),
                       lambda here: _picture(here / "parts/val/c/1.png")), "has the class 'c'"),
    ("fit parts", lambda here: shutil.copytree(here / "photos", here / "parts/val"), "but no train"),
    ("fit parts", both(lambda here: shutil.copytree(here / "photos", here / "parts/train"),
                       lambda here: shutil.copytree(here / "photos", here / "parts/Training")), "both"),
    ("fit photos", all_damaged("photos/*/*"), "none of the 40 images"),
    ("fit photos", all_damaged("photos/b/*"), "class 'b'"),
    ("fit photos --strict", damaged("photos/b/1.png"), "which strict forbids (b/1.png"),
    ("fit photos --val 0", nothing, "val must not be 0"),
    ("fit photos --val 0.6 --test 0.6", nothing, "val"),
    ("fit photos --test 1000", nothing, "test"),
    ("fit photos --val -1", nothing, "val"),
    ("fit photos --val nan", nothing, "val"),
    ("fit photos --short-side 0", nothing, "short_side"),
    ("fit photos --folds 1000", nothing, "folds"),
    ("fit photos --folds -1", nothing, "folds"),
    # Tables.
    ("fit gone.csv", nothing, "there is no file or folder"),
    ("fit t.csv", text("t.csv", ""), "t.csv"),
    ("fit t.csv", text("t.csv", "file,label\n"), "t.csv"),
    ("fit t.csv", text("t.csv", "file,label\ngone.png,a\n"), "t.csv"),
    ("fit t.csv", lambda here: (here / "t.csv").write_bytes(b"file,label\n\xff\xfe,a\n"), "t.csv"),
    ("fit t.jsonl", text("t.jsonl", "{"), "t.jsonl"),
    ("fit t.jsonl", text("t.jsonl", "[1]\n"), "t.jsonl"),
    ("fit t.csv --label-column kind", lines("t.csv"), "kind"),
    ("fit t.csv --file-column where", lines("t.csv"), "where"),
    ("fit t.csv --group-by patient", lines("t.csv"), "patient"),
    ("fit t.csv --images gone", lines("t.csv"), "gone"),
    # Arrays.
    ("fit bad.npz", text("bad.npz", "rubbish"), "bad.npz is no .npz file"),
    ("fit bad.npz", text("bad.npz", "PK\3\4 rubbish"), "cannot be read as an .npz file"),
    ("fit bad.npz", text("bad.npz", ""), "cannot be read as an .npz file"),
    ("fit bad.npz", lambda here: (here / "bad.npz").write_bytes((here / "data.npz").read_bytes()[:300]), "cannot be"),
    ("fit bad.npz", lambda here: (here / "bad.npz").write_bytes(pickle.dumps(X)), "bad.npz"),
    ("fit bad.npz", lambda here: np.save((here / "bad.npz").open("wb"), X), "one array without targets"),
    ("fit bad.npz", npz(x=X, y=np.array([object()] * 40)), "Python objects are not read"),
    ("fit bad.npz", npz(x=X), "expected are x and y"),
    ("fit bad.npz", npz(x=X[:, :0], y=Y), "is empty"),
    ("fit bad.npz", npz(x=np.where(X > 2, np.nan, X), y=Y), "NaN or infinite"),
    ("fit bad.npz", npz(x=X, y=Y - 1), "labels must not be negative"),
    ("fit bad.npz", npz(x=X, y=Y[:-1]), "40 samples but 39 targets"),
    ("fit bad.npz", npz(x=X, y=Y * 0), "at least two are needed"),
    ("fit bad.npz", npz(x=X, y=np.where(Y, np.inf, 0.5)), "NaN or infinite"),
    ("fit bad.npz", npz(x_train=X, y_train=Y, x_test=X, y_test=Y + 1), "is in no sample to train on"),
    ("fit bad.npz", npz(x_train=X, y_train=Y, x_test=X[:, :2], y_test=Y), "differ"),
    ("fit bad.npz", npz(x=X.astype("U"), y=Y), "must be numbers"),
    ("fit bad.npz", npz(x=X[:2], y=Y[:2]), ""),
    # Where a run is kept.
    ("fit photos --out done", nothing, "done holds a run; go on with it (--resume"),
    ("fit photos --out foreign", nothing, "foreign is not empty and holds no run (thesis.txt)"),
    ("fit photos --out foreign --overwrite", nothing, "foreign is not empty and holds no run (thesis.txt)"),
    ("fit photos --out data.npz", nothing, "data.npz is a file"),
    ("fit photos --out data.npz/run", nothing, "data.npz/run is a file, or below one"),
    ("fit photos --out done --overwrite --model resnet19", nothing, "unknown model"),
    ("fit gone --out done --overwrite", nothing, "there is no file or folder"),
    ("fit gone --out new/and/deep", nothing, "there is no file or folder"),
    (f"fit photos --out {'n' * 300}", nothing, "File name too long"),
    # Going on.
    ("fit --resume", nothing, "--resume needs --out"),
    ("fit --resume --out gone", nothing, "gone holds no run to go on with"),
    ("fit --resume --out foreign", nothing, "foreign holds no run to go on with"),
    ("fit --resume --out data.npz", nothing, "data.npz holds no run to go on with"),
    ("fit --resume --out cut --epochs 7", nothing, "was started with epochs=2, not 7"),
    ("fit --resume --out cut --val 0.4", nothing, "was started with val="),
    ("fit --resume --out cut", own_data(removed("photos/a/0.png")), "are not what cut was trained on"),
    ("fit --resume --out cut", own_data(removed("photos")), "there is no file or folder"),
    ("fit --resume --out cut", all_damaged("cut/checkpoints/*/*"), "holds no checkpoint that is whole"),
    ("fit --resume --out cut", removed("cut/checkpoints"), "holds no checkpoint that is whole"),
    ("fit --resume --out cut", damaged("cut/run.json"), "run.json is damaged"),
    ("fit --resume --out cut", text("cut/run.json", "{}"), "run.json is damaged"),
    ("fit --resume --out cut", text("cut/run.json", "[]"), "run.json is damaged"),
    ("fit --resume --out cut", changed("cut/run.json", "fingerprint", value="x"), "are not what cut was trained on"),
    ("fit --resume --out cut", changed("cut/run.json", "source", value="gone"), "there is no file or folder"),
    ("fit --resume --out cut", changed("cut/run.json", "data_options", value=3), "run.json is damaged"),
    ("fit --resume --out cut", changed("cut/run.json", "given", value={}), "run.json is damaged"),
    ("fit --resume --out cut", damaged("cut/recipe.toml"), "recipe.toml: no recipe can be read"),
    ("fit --resume --out cut", removed("cut/recipe.toml"), "recipe"),
    ("fit --resume --out cut", text("cut/recipe.toml", 'model = "mlp"'), "is of another model"),
    ("fit --resume --out cut", text("cut/history.jsonl", "rubbish\n"), "history is damaged; remove the file"),
    ("fit --resume --out done", text("done/result.json", "{"), "result.json is damaged"),
    # Predictions and reports.
    ("predict gone photos", nothing, "gone holds no run"),
    ("predict photos photos", nothing, "photos holds no run"),
    ("predict data.npz photos", nothing, "data.npz holds no run"),
    ("predict cut photos", nothing, "cut has no model yet"),
    ("predict done photos", damaged("done/run.json"), "run.json is damaged"),
    ("predict done photos", text("done/run.json", "{}"), "run.json is damaged"),
    ("predict done photos", changed("done/run.json", "model", value={}), "run.json is damaged"),
    ("predict done photos", changed("done/run.json", "model", "num_classes", value="x"), "run.json is damaged"),
    ("predict done photos", damaged("done/model.safetensors"), "model.safetensors does not fit"),
    ("predict done gone.png", nothing, "there is no file gone.png"),
    ("predict done data.npz", nothing, "no image could be read (data.npz"),
    ("predict done empty", lambda here: (here / "empty").mkdir(), "no image could be read"),
    ("predict done photos --model other:make", nothing, "not 'other:make'"),
    ("report gone", nothing, "gone holds no run"),
    ("report foreign", nothing, "foreign holds no run"),
    ("report done", text("done/run.json", "{}"), "run.json"),
    ("report done", damaged("done/recipe.toml"), "recipe.toml"),
    ("report done", text("done/history.jsonl", "rubbish\n"), "history is damaged"),
]  # fmt: skip


def _is_one_line(code: int, out: str, err: str, message: str) -> None:
    assert (code, out) == (2, ""), err
    told = [line for line in err.splitlines() if not line.startswith("trainwell: left out ")]
    warned = [line for line in told if line.startswith("trainwell: the checkpoint ") and " is damaged (" in line]
    told = [line for line in told if line not in warned]
    assert len(told) == 1, err
    assert told[0].startswith("trainwell: ")
    assert message in told[0], err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", ["fit --resume --out cut", "fit photos --out cut --overwrite"])
def test_a_folder_that_another_run_works_in(words, here, capsys):
    before = _digests(here)
    with FileLock(here / "cut" / ".lock"), pytest.raises(SystemExit) as end:
        main([*words.split(), "--quiet"])
    _is_one_line(end.value.code, *capsys.readouterr(), "another run is at work in cut; choose another --out")
    assert _digests(here) == before


@pytest.mark.parametrize(
    ("words", "arrange", "message"),
    [
        ("fit photos --epohcs 3", nothing, "unknown flag --epohcs (did you mean --epochs?); see trainwell fit --help"),
        ("fit --resume --out cut --quiet", all_damaged("cut/checkpoints/*/*"), "holds no checkpoint that is whole"),
        ("predict cut photos", nothing, "cut has no model yet"),
    ],
)
def test_the_same_in_a_process_of_its_own(words, arrange, message, here):
    arrange(here)
    before = _digests(here)
    done = subprocess.run([sys.executable, "-m", "trainwell", *words.split()], capture_output=True, text=True)
    _is_one_line(done.returncode, done.stdout, done.stderr, message)
    assert _digests(here) == before


def test_help_is_shown_as_it_is(capsys):
    for words in (["--help"], ["fit", "--help"], ["fit", "photos", "--epohcs", "3", "-h"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr()
        assert (end.value.code, said.err) == (0, "")
        assert "usage: trainwell" in said.out
        assert said.out.count("\n") > 10


@pytest.mark.parametrize(("words", "arrange", "message"), TABLE, ids=[f"{row[0]}: {row[2]}" for row in TABLE])
def test_bad_input(words, arrange, message, here, capsys):
    arrange(here)
    before = _digests(here)
    try:
        main([*(["fit", "--quiet"] if words.startswith("fit ") else []), *words.removeprefix("fit ").split()])
        code = 0
    except SystemExit as end:
        code = end.code
    _is_one_line(code, *capsys.readouterr(), message)
    assert _digests(here) == before
