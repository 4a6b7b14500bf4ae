"""An ensemble on disk: members that answer together, what each said, and how much better they are than one."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import trainwell
from trainwell import random
from trainwell.errors import InputError
from trainwell.files import new_directory, write_json
from trainwell.images import Images
from trainwell.run import Run
from trainwell.train.ensemble_file import FILE, read
from trainwell.train.ensemble_result import Mean, answers_of, choose, combined, judge
from trainwell.train.snapshots import evaluation_of, taken

Factory = Callable[[], nn.Module]
Models = nn.Module | Factory | str | Sequence[str] | None

_NEEDED = ("run.json", "recipe.toml", "split.safetensors", "model.safetensors", "evaluation.safetensors", "result.json")


class Ensemble(Run):
    """Members that answer together: the mean of their probabilities, made as sure as it may be.

    `predict` and the command line take it like a run. What its folder holds is data; nothing in it is ever executed.

    Args:
        path: the folder of the ensemble, or of a run that kept snapshots.
        model: where members' models are code of yours: a function that makes one, a module (of which each gets a copy),
            or its name again, "package.module:function"; or a list of names, if they differ. Members whose models are
            built in do without.

    Attributes:
        members: those that answer, as runs, in the order in which they were chosen on validation.
        temperature: of the mean; above 1 it is less sure than the mean says.

    Raises:
        InputError: there is no ensemble at `path`, or it is not finished.
    """

    def __init__(self, path: Path | str, model: Models = None) -> None:
        self.path, self._given, self._weights = Path(path), None, ""
        self.about = read(self.path)
        if "result" not in self.about:
            raise InputError(f"{self.path} is not finished; go on with it: --resume, or fit_members(…, resume=True)")
        named = [self.about["members"][number] for number in self.about["kept"]]
        self.members = tuple(_opened(self.path / m["run"], model, m["weights"]) for m in named)
        self.mean: Mean = self.about["mean"]
        self.temperature = float(self.about["temperature"])
        self.info, self.recipe = self.members[0].info, self.members[0].recipe

    @classmethod
    def of(
        cls,
        runs: Iterable[Run | Path | str],
        out: Path | str,
        *,
        mean: Mean = "arithmetic",
        model: Models = None,
    ) -> "Ensemble":
        """Makes an ensemble of finished runs on the same data, and the same split of them, in a folder of its own.

        Which of them answer is chosen on the validation part alone.

        Args:
            runs: two or more, or their folders; what is needed of them is copied. One that was opened with a snapshot
                as its weights is that snapshot.
            out: the folder to make.
            mean: of the probabilities.
            model: as for `Ensemble`.

        Raises:
            InputError: the runs are fewer than two, or not of one kind, one is there twice, or `out` exists.
        """
        folder = Path(out)
        given = [] if isinstance(runs, Run | Path | str) else list(runs)
        if len(given) < 2:
            raise InputError("an ensemble is of two runs or more: give a list of them, or of their folders")
        members = [run if isinstance(run, Run) else _opened(run, model) for run in given]
        _refuse_twice(members)
        if folder.exists():
            raise InputError(f"{folder} exists already; choose another place for the ensemble")
        with new_directory(folder) as partial:
            for number, run in enumerate(members, 1):
                own = partial / "members" / str(number)
                own.mkdir(parents=True)
                for name, copied in _files_of(run).items():
                    (own / name).write_bytes(copied.read_bytes())
            make(partial, [member(number) for number in range(1, len(members) + 1)], mean)
        return cls(folder, model)

    @property
    def result(self) -> dict[str, Any]:
        """How good it is on data never seen, single against ensemble."""
        found: dict[str, Any] = self.about["result"]
        return found

    @cached_property
    def model(self) -> nn.Module:
        """There is no one model.

        Raises:
            InputError: always; the models are those of `members`.
        """
        raise InputError(f"{self.path} is an ensemble: its models are those of its members, [run.model for run in "
                         "ensemble.members]")  # fmt: skip

    def report(self) -> Path:
        """Writes `report.html` into the ensemble's folder, or `ensemble.html` into a run's, and returns its path."""
        from trainwell.lab.ensemble_report import write_report

        return write_report(self.path)

    def _outputs(
        self, samples: Images | npt.NDArray[np.float32], batch_size: int, average: str
    ) -> npt.NDArray[np.float32]:
        outputs = [torch.from_numpy(member._outputs(samples, batch_size, average)) for member in self.members]
        found: npt.NDArray[np.float32] = combined(outputs, self.mean, self.temperature).float().numpy()
        return found


def opened(path: Path | str, model: Models = None) -> Run:
    """Returns the ensemble in a folder, or the run, if there is no ensemble."""
    return Ensemble(path, model) if (Path(path) / FILE).exists() else Run(path, _one(model, ""))


def _opened(path: Path | str, model: Models, weights: str = "model.safetensors") -> Run:
    """Returns a member; the caller's model goes to one that was trained with code of theirs, not to one built in."""
    run = Run(path, None, weights)
    name = run.info["model"]["name"]
    code = ":" in name and run.info.get("backbone") is None
    return Run(path, _one(model, name), weights) if code or run.info["given"]["model"] else run


def _one(model: Models, name: str) -> nn.Module | str | None:
    """Returns a model for one member, whose run says that it has that name."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if isinstance(model, Sequence) and not isinstance(model, str):
        return name if name in model else next(iter(model), None)
    if not callable(model):
        return model
    with random.preserved():  # its weights are to be replaced
        return model()


# ---------------------------------------------------------------------- making one


def _refuse_twice(runs: Sequence[Run]) -> None:
    places = [(run.path.resolve(), run._weights) for run in runs]
    for number, (run, place) in enumerate(zip(runs, places, strict=True), 1):
        if isinstance(run, Ensemble):
            raise InputError(f"{run.path} is an ensemble itself: give its members, [*ensemble.members, …]")
        if (first := places.index(place) + 1) < number:
            raise InputError(f"run {number} is run {first} again, {run.path}: give each once")


def _files_of(run: Run) -> dict[str, Path]:
    """Returns what is needed of a run as a member, by the names that it has there.

    Raises:
        InputError: something is missing.
    """
    files = {name: run.path / name for name in _NEEDED}
    if run._weights != "model.safetensors":  # of which alone result.json tells
        weights = run.path / run._weights
        files |= {"model.safetensors": weights, "evaluation.safetensors": evaluation_of(weights)}
        del files["result.json"]
    for path in files.values():
        if not path.exists():
            name = path.relative_to(run.path)
            raise InputError(f"{run.path} has no {name}: it is not finished, or an ensemble itself")
    return files


def member(number: int) -> dict[str, str]:
    """Returns where member `number`, from 1 on, is in an ensemble's folder."""
    return {"run": f"members/{number}", "weights": "model.safetensors"}


def of_snapshots(folder: Path, model: nn.Module | None = None) -> Ensemble:
    """Makes the ensemble of a finished run's snapshots, and of the weights it kept, in the run's own folder.

    The kept weights are among those that are chosen from, as otherwise the ensemble could be worse on validation than
    the run beside it. Its report is there too.

    Raises:
        InputError: there are no snapshots.
    """
    steps = Run(folder).result["steps"]
    snapshots = taken(folder, steps)
    if not snapshots:
        raise InputError(f"{folder} has no snapshots: train with snapshots=3")
    found = [path.relative_to(folder).as_posix() for path in snapshots]
    said = (folder / "evaluation.safetensors").read_bytes()
    if all(evaluation_of(path).read_bytes() != said for path in snapshots):  # or it is one of them
        found.append("model.safetensors")
    make(folder, [{"run": ".", "weights": weights} for weights in found])
    ensemble = Ensemble(folder, model)
    ensemble.report()
    return ensemble


def make(folder: Path, members: list[dict[str, str]], mean: Mean = "arithmetic", **about: Any) -> None:
    """Chooses members on validation, calibrates their mean there, judges all on the test part, and writes it down.

    Args:
        folder: the ensemble's.
        members: the "run" of each, a folder below it, and its file of "weights".
        mean: of the probabilities.
        **about: what else is to be known of the ensemble.

    Raises:
        InputError: the members are not of one kind.
    """
    infos = [Run(folder / member["run"]).info for member in members]
    task = infos[0]["task"]
    if mean == "geometric" and task != "classification":
        raise InputError("the geometric mean is of the probabilities of classes; take the arithmetic one")
    for member, info in zip(members, infos, strict=True):
        if any(info[name] != infos[0][name] for name in ("task", "classes", "fingerprint")):
            raise InputError(f"{member['run']} was trained on other data, or split otherwise, than {members[0]['run']}")
    answers = [answers_of(folder / member["run"] / member["weights"], task) for member in members]
    for member, answer in zip(members, answers, strict=True):
        if not torch.equal(answer.rows, answers[0].rows) or not torch.equal(answer.val_targets, answers[0].val_targets):
            raise InputError(f"{member['run']} was judged on other samples than {members[0]['run']}; split them alike")
    kept, T = choose(answers, mean, task)
    write_json(folder / FILE, about | {
        "trainwell": trainwell.__version__, "members": members, "mean": mean, "kept": kept, "temperature": T,
        "result": judge(answers, kept, mean, T, task),
    })  # fmt: skip
