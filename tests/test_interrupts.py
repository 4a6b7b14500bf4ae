"""What ends a run from outside, in any phase: Ctrl-C and requests to end, no memory, a folder that cannot be used.

Each in a forked child, with real signals and real failures of allocation: one line, the right code, and then the run
goes on to the same bits.
"""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import trainwell as tw
from faults import Ended, in_child
from trainwell.cli import main
from trainwell.data import cache, store
from trainwell.train import speed
from trainwell.train.custom import Custom
from trainwell.train.display import Display
from trainwell.train.prepare import prepared
from trainwell.train.recipe import Recipe

HOW = re.compile(r"go on with: (trainwell fit --resume --out [^\s;]+( --model [^\s;]+)?)")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("data") / "two.npz", np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(60, 6)).astype("f4"), y=np.arange(60) % 2)
    return path


def _words(source: Path, out: Path, *more: str) -> list[str]:
    return ["fit", str(source), "--out", str(out), "--epochs", "2", "--folds", "1", "--batch-size", "8",
            "--threads", "1", "--quiet", *(more or ("--drop-rate", "0.2"))]  # fmt: skip


def _weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = in_child(lambda: main(_words(data, out)))
    assert (ended.code, ended.err) == (0, "")
    return _weights(out)


# --- Signals. ---

NOTHING = "; nothing was started"
PHASES = [
    ("trainwell.data.arrays:read_npz", "interrupted while reading the data" + NOTHING),
    ("trainwell.models:create", "interrupted while building the model" + NOTHING),
    ("trainwell.train.folder:describe", "interrupted while building the model" + NOTHING),
    ("trainwell.train.loop:Trainer.train_step", "interrupted and saved after step 1 of "),
    ("trainwell.train.loop:Trainer.validate", "interrupted and saved after step 5 of 10; go on with: "),
    ("trainwell.train.result:write_result", "interrupted while testing; go on with: "),
    ("trainwell.lab.report:write_report", "interrupted while writing the report; go on with: "),
]


def _signalled(where: str, numbers: list[int]) -> Callable[[], None]:
    """Returns what lets a function first send signals to its own process."""

    def prepare() -> None:
        module, _, name = where.partition(":")
        owner = importlib.import_module(module)
        *above, name = name.split(".")
        for part in above:
            owner = getattr(owner, part)
        act = getattr(owner, name)

        def first_signals(*arguments, **named):
            for number in numbers:
                os.kill(os.getpid(), number)
            return act(*arguments, **named)

        setattr(owner, name, first_signals)

    return prepare


def _is_interrupted(ended: Ended, told: str) -> None:
    assert ended.code == 130, ended.err
    assert ended.err.startswith(f"trainwell: {told}")
    assert ended.err.count("\n") == 1, ended.err


def _goes_on(ended: Ended, data: Path, out: Path, whole: bytes) -> None:
    """Does what the line says, or starts anew where nothing was started."""
    if NOTHING in ended.err:
        assert not out.exists()
        again = in_child(lambda: main(_words(data, out)))
    else:
        again = in_child(lambda: main([*shlex.split(HOW.search(ended.err)[1])[1:], "--quiet"]))
    assert (again.code, again.err) == (0, "")
    assert _weights(out) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("where", "told"), PHASES)
def test_interrupted_in_every_phase(where, told, number, data, whole, tmp_path):
    out = tmp_path / "run"
    ended = in_child(lambda: main(_words(data, out)), prepare=_signalled(where, [number]))
    _is_interrupted(ended, told)
    _goes_on(ended, data, out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["trainwell.data.folder:scan", "trainwell.data.store:_chunks"])
def test_interrupted_while_images_are_listed_and_decoded(where, number, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    ended = in_child(lambda: main(_words(photos, tmp_path / "run")), prepare=_signalled(where, [number]))
    _is_interrupted(ended, "interrupted while reading the data" + NOTHING)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("pixels.bin"))


def test_a_second_request_acts_at_once(data, whole, tmp_path):
    numbers = [signal.SIGTERM, signal.SIGINT]
    prepare = _signalled("trainwell.train.loop:Trainer.train_step", numbers)
    ended = in_child(lambda: main(_words(data, tmp_path / "run")), prepare=prepare)
    _is_interrupted(ended, "interrupted while training; go on with: ")
    _goes_on(ended, data, tmp_path / "run", whole)


def test_a_terminal_that_is_closed_ends_the_run_unless_that_is_ignored(data, whole, tmp_path):
    prepare = _signalled("trainwell.train.loop:Trainer.train_step", [signal.SIGHUP])
    ended = in_child(lambda: main(_words(data, tmp_path / "run")), prepare=prepare)
    _is_interrupted(ended, "interrupted and saved after step 1 of ")
    _goes_on(ended, data, tmp_path / "run", whole)

    def ignored() -> None:  # as by nohup
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        prepare()

    ended = in_child(lambda: main(_words(data, tmp_path / "other")), prepare=ignored)
    assert (ended.code, ended.err) == (0, "")
    assert _weights(tmp_path / "other") == whole


def test_handlers_are_as_they_were(data, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    tw.fit((np.eye(20, dtype="f4"), np.arange(20) % 2), out=tmp_path / "run", epochs=1, folds=1, quiet=True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


_DECODING = """
import sys
from trainwell import progress
from trainwell.cli import main
track = progress.track

def told(items, *more):
    for number, item in enumerate(track(items, *more)):
        if number == 100:
            print("decoding", flush=True)
        yield item

progress.track = told
main(["fit", sys.argv[1], "--out", sys.argv[2], "--epochs", "1", "--quiet"])
"""


def test_ctrl_c_at_a_terminal_while_processes_decode(tmp_path):
    """It reaches the whole group, those that decode too; none of them says a word or stays behind."""
    rng = np.random.default_rng(0)
    for number in range(1500):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path, compress_level=0)
    command = [sys.executable, "-c", _DECODING, str(tmp_path / "photos"), str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"TRAINWELL_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert process.stdout.readline() == b"decoding\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)  # returns when the last process that holds the pipe is gone
    assert (process.returncode, err.decode()) == (130, f"trainwell: interrupted while reading the data{NOTHING}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "photos"]
    assert not list(tmp_path.rglob(".*.partial"))


_BLOCKED = """
import signal
from trainwell.data import store

pool = store._processes(2)
with store._interrupts_held():
    told = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, [])
print(signal.SIGINT in told.result(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
pool.shutdown()
"""


def test_ctrl_c_does_not_reach_a_process_that_begins():
    run = subprocess.run([sys.executable, "-c", _BLOCKED], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == ["True", "False"]


# --- Memory. ---

GREEDY = """
import os
import numpy as np, torch
from torch import nn

def _use_up():
    kind = os.environ.get("GREEDY_KIND")
    if kind == "torch":
        torch.empty(10**15)  # more than any machine can address
    elif kind == "numpy":
        np.empty(10**15)
    elif kind == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

class Greedy(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.last = nn.Flatten(), nn.Linear(6, 2)

    def forward(self, x):
        when = os.environ.get("GREEDY_WHEN")
        if (when == "probe" or (when == "train" and self.training and torch.is_grad_enabled())
                or (when == "validate" and not self.training and len(x) > 2)):
            _use_up()
        return self.last(self.flat(x))

def make():
    return Greedy()
"""


@pytest.fixture(scope="module")
def greedy(data, tmp_path_factory):
    """A folder with a model that can use up the memory, and its weights when it does not."""
    folder = tmp_path_factory.mktemp("greedy")
    (folder / "greedy.py").write_text(GREEDY)
    words = _words(data, folder / "run", "--model", "greedy:make")
    ended = in_child(lambda: main(words), prepare=lambda: os.chdir(folder))
    assert (ended.code, ended.err) == (0, "")
    return folder, _weights(folder / "run")


@pytest.mark.parametrize(
    ("kind", "when", "told"),
    [
        ("torch", "probe", "while building the model; nothing was started: try --batch-size 4"),
        ("torch", "train", "while training; what was saved before is whole: close other programs"),
        ("numpy", "train", "while training; what was saved before is whole: close other programs"),
        ("cuda", "validate", "while training; what was saved before is whole: close other programs"),
    ],
)
def test_memory_that_runs_out(kind, when, told, greedy, data, tmp_path, monkeypatch):
    monkeypatch.chdir(greedy[0])
    out, words = tmp_path / "run", _words(data, tmp_path / "run", "--model", "greedy:make")
    starved = in_child(lambda: main(words), prepare=lambda: os.environ.update(GREEDY_KIND=kind, GREEDY_WHEN=when))
    assert starved.code == 2, starved.err
    assert starved.err.startswith(f"trainwell: out of memory at batch_size 8 {told}")
    assert "--batch-size 4 --grad-accum-steps 2" in starved.err
    assert starved.err.count("\n") == 1
    if "nothing was started" in starved.err:
        assert not out.exists()
        again = in_child(lambda: main(words))
    else:
        again = in_child(lambda: main([*shlex.split(HOW.search(starved.err)[1])[1:], "--quiet"]))
    assert (again.code, again.err) == (0, "")
    assert _weights(out) == greedy[1]


def test_memory_that_runs_out_in_python_is_an_input_error(tmp_path):
    class Greedy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(torch.empty(10**15) if torch.is_grad_enabled() else x)

    with pytest.raises(tw.InputError, match=r"out of memory at batch_size 16 .*then go on with: tw\.resume\("):
        tw.fit((np.eye(40, dtype="f4"), np.arange(40) % 2), out=tmp_path / "run", model=Greedy(40, 2), epochs=1,
               folds=1, quiet=True)  # fmt: skip


def test_an_error_of_ones_own_code_stays_what_it_is(tmp_path):
    """Only what is about the run's own files is taken for a disk that fails."""

    def fails(*_):
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        tw.fit((np.eye(40, dtype="f4"), np.arange(40) % 2), out=tmp_path / "run", epochs=1, folds=1, quiet=True,
               on_epoch_end=fails)  # fmt: skip


def test_memory_that_runs_out_while_decoding_or_predicting(photos, tmp_path, monkeypatch):
    done = tw.fit(photos, out=tmp_path / "run", model="resnet8", epochs=1, folds=1, threads=1, quiet=True)

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
        patch.setattr(store, "_chunks", no_memory)
        with pytest.raises(tw.InputError, match="out of memory while decoding the images of .*LOKY_MAX_CPU_COUNT"):
            tw.load(photos, quiet=True)
        assert not list(tmp_path.rglob(".*.partial"))
    monkeypatch.setattr("trainwell.run.outputs_of", no_memory)
    with pytest.raises(tw.InputError, match=r"out of memory at 64 samples at once: .*batch_size=16"):
        done.predict(photos)


# --- Folders. ---


def test_a_folder_that_another_process_works_in(data, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        ended = in_child(lambda: main(_words(data, tmp_path / "run")))
    assert (ended.code, ended.err) == (
        2, f"trainwell: another run is at work in {tmp_path / 'run'}; choose another --out\n"
    )  # fmt: skip


@pytest.fixture
def locked():
    """A folder in which a user without rights cannot write; for the superuser, a child gives them up first."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        yield Path(folder)
        Path(folder).chmod(0o755)


def _as_nobody() -> None:
    if os.getuid() == 0:
        os.setuid(65534)


def test_a_folder_that_cannot_be_written(locked):
    arrays = np.eye(20, dtype="f4"), np.arange(20) % 2

    def act() -> None:
        for out in (locked, locked / "deeper" / "run"):
            with pytest.raises(tw.InputError, match=r"cannot be written \(Permission denied\); choose another --out"):
                tw.fit(arrays, out=out, epochs=1, quiet=True)

    ended = in_child(act, prepare=_as_nobody)
    assert ended.code == 0, ended.err
    assert not list(locked.iterdir())


def test_a_cache_that_cannot_be_written(locked, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(locked / "cache"))
    image = Image.new("RGB", (8, 8))

    def act() -> None:
        with tempfile.TemporaryDirectory() as root:
            for label in "ab":
                (Path(root) / label).mkdir()
                image.save(Path(root) / label / "1.png")
            with pytest.raises(tw.InputError, match=r"cannot be kept in .*Permission denied.*TRAINWELL_CACHE"):
                tw.load(root, quiet=True)

    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    ended = in_child(act, prepare=_as_nobody)
    assert ended.code == 0, ended.err


def test_a_user_without_a_home(photos, monkeypatch):
    monkeypatch.setattr(store, "cache_folder", lambda: Path("~/.cache/trainwell"))  # as platformdirs leaves it
    with pytest.raises(tw.InputError, match="no home folder .*: set the environment variable TRAINWELL_CACHE"):
        tw.load(photos, quiet=True)
    monkeypatch.setattr(store, "cache_folder", cache.cache_folder)
    monkeypatch.setenv("TRAINWELL_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(tw.InputError, match="no home folder .*: set the environment variable TRAINWELL_CACHE"):
        tw.load(photos, quiet=True)


# --- A machine that sleeps. ---


@pytest.mark.parametrize("hours", [8, -1])
def test_a_clock_that_jumps_changes_nothing_in_the_result(hours, data, tmp_path, monkeypatch, capsys):
    main(_words(data, tmp_path / "plain"))  # in this process: a forked one steps without the compiled kernels
    calls = iter(range(10**9))
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3600 * hours * (next(calls) // 5))
    main([word for word in _words(data, tmp_path / "run") if word != "--quiet"])
    assert _weights(tmp_path / "run") == _weights(tmp_path / "plain")
    rows = tw.Run(tmp_path / "run").history
    assert all(np.isfinite(row["seconds"]) for row in rows)
    assert "Traceback" not in capsys.readouterr().err


def _recipe():
    return Recipe(steps=10, threads=1)


def test_a_sleep_while_the_speed_is_measured_does_not_shorten_the_run(data, monkeypatch):
    """Each look at the clock takes a hundredth of a second; one takes eight hours."""

    data = tw.load(data, quiet=True)
    found = []
    with prepared(data, _recipe(), Custom(), Display(True)) as trainer:
        for asleep in (None, *range(14)):
            ticks = iter(range(10**9))

            class Clock:
                now = 0.0

                @classmethod
                def monotonic(cls, ticks=ticks, asleep=asleep):
                    cls.now += 28_800 if next(ticks) == asleep else 0.01
                    return cls.now

            monkeypatch.setattr(speed, "time", Clock)
            found.append(speed.steps_within(2.0, trainer))
    assert found[0] > 50
    assert all(abs(steps - found[0]) <= 0.3 * found[0] for steps in found[1:]), found


def test_no_time_at_all_is_one_step(data, monkeypatch):

    class Stands:
        @staticmethod
        def monotonic():
            return 0.0

    with prepared(tw.load(data, quiet=True), _recipe(), Custom(), Display(True)) as trainer:
        monkeypatch.setattr(speed, "time", Stands)
        assert speed.steps_within(60.0, trainer) >= 1
