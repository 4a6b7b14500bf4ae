"""The whole state of a training loop of one's own, kept on disk."""

import contextlib
import hashlib
import os
import random as _python_random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainwell import random
from trainwell.ensemble.averaging import holds_average
from trainwell.errors import InputError, in_one_line
from trainwell.train.checkpoint_folder import CheckpointFolder
from trainwell.weights import bare

_T = TypeVar("_T")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_ASK_SECONDS = 1.0


class Checkpoint:
    """Saves and restores everything that decides how a training loop goes on, so that it does to the same bits.

    Parts are any objects with `state_dict` and `load_state_dict`: models, optimizers, schedulers, gradient scalers,
    averaged models, a `KeyedSampler`. Beside them are saved the buffers that a model's state leaves out, the global
    generators of torch (CPU, CUDA, MPS), NumPy and Python, and whatever values `save` is given.

    Each `save` is a folder of safetensors and JSON that is there whole or not at all and is verified when it is
    loaded; nothing is pickled. One process at a time may save in a folder; any may load.

    A wrapped model (`torch.compile`, `DistributedDataParallel`) is saved bare, so it can be resumed with or without.
    Under `torch.distributed` all ranks call `load`, `save` and `every` alike, and all must see the folder; rank 0
    writes, and each rank gets its own generators back. If there are more ranks than there were, the new ones are
    seeded by rank 0's. Models whose ranks hold different pieces (FSDP) are refused.

    In a `with` block the first Ctrl-C or SIGTERM is held back until the next `every` or `save`, which saves and then
    raises `KeyboardInterrupt`; a second one acts at once. It is for a process with a moment's notice to save, so let
    it be sent to that process alone: a `DataLoader`'s worker that gets a SIGTERM dies, and the loop with it.

    Args:
        folder: where to save; made if need be.
        keep: how many of the newest are kept.
        random_states: whether the global generators are saved and restored.
        **parts: what to save, by names that stay the same.

    Raises:
        InputError: a part has no state, or one that is not whole on each rank.

    Example:
        Save between two steps of the optimizer, and load last of all before the loop.

        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> checkpoint = Checkpoint(tempfile.mkdtemp(), model=model, optimizer=optimizer)
        >>> step = checkpoint.load().get("step", 0)  # nothing is there yet
        >>> while step < 3:
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2)).backward()
        ...     optimizer.step()
        ...     step += 1
        ...     saved = checkpoint.every(60, step=step)
        >>> checkpoint.save(step=step)
        >>> checkpoint.load()
        {'step': 3}
    """

    def __init__(self, folder: Path | str, /, *, keep: int = 2, random_states: bool = True, **parts: Any) -> None:
        if keep < 1:
            raise InputError(f"keep must be at least 1, not {keep}")
        self.folder, self.random_states = Path(folder), random_states
        self.parts = {name: _bare(name, part) for name, part in parts.items()}
        self._folder = CheckpointFolder(self.folder, keep, prefix="save")
        self._saved = self._asked = time.monotonic()
        self._calls, self._ask_at = 0, 1
        self._signals = contextlib.ExitStack()
        self._interrupted: Callable[[], bool] = _never

    # ------------------------------------------------------------------ saving

    def save(self, /, **values: Any) -> None:
        """Saves all parts, and any values (numbers, strings, tensors, nests of them) that `load` is to return.

        Raises:
            InputError: a part holds something that would have to be pickled, or a model an average for a while, and not
                its own weights; or another process saves here.
            KeyboardInterrupt: Ctrl-C or SIGTERM came in the `with` block before; the state was saved.
        """
        mine = (_generators() if self.random_states else None, self._interrupted())
        ranks = [mine]
        if _distributed():
            ranks = [mine] * distributed.get_world_size()
            distributed.all_gather_object(ranks, mine)  # pickles, but from our own processes to each other
        _by_rank_0(lambda: self._write([states for states, _ in ranks if states], values))
        self._saved = time.monotonic()
        if any(interrupted for _, interrupted in ranks):
            self._interrupted = _never
            raise KeyboardInterrupt(f"interrupted, and saved in {self.folder}")

    def every(self, seconds: float, /, **values: Any) -> bool:
        """Calls `save` if that long ago it was last called (at first: since this object was made, or loaded).

        Under `torch.distributed` it may be a second more, as the ranks ask each other only about once a second.

        Returns:
            Whether it was saved.
        """
        if self._any_rank(time.monotonic() - self._saved >= seconds or self._interrupted(), min(seconds, _ASK_SECONDS)):
            self.save(**values)
            return True
        return False

    def _write(self, generators: list[dict[str, Any]], values: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            if isinstance(part, nn.Module) and holds_average(part):
                raise InputError(f"the part {name!r} holds an average now, and not its own weights: save after the "
                                 "`with` block of weights()")  # fmt: skip
        _hold(self.folder)
        number = max(self._folder.steps(), default=0) + 1
        state = {
            "number": number,
            "parts": {name: _state_of(part) for name, part in self.parts.items()},
            "buffers": {name: other_buffers(part) for name, part in self.parts.items() if isinstance(part, nn.Module)},
            "kinds": {name: type(part).__name__ for name, part in self.parts.items()},
            "generators": generators,
            "values": values,
        }
        self._folder.save(number, state)

    def _any_rank(self, wanted: bool, pause: float) -> bool:
        """Returns whether any rank wants something; asks rarely, as asking makes the ranks wait for each other."""
        if not _distributed():
            return wanted
        self._calls += 1
        if self._calls < self._ask_at:
            return False
        now = time.monotonic()
        calls_to_next = int(pause * self._calls / max(now - self._asked, 1e-6))
        device = "cuda" if "nccl" in distributed.get_backend() else "cpu"
        answer = torch.tensor([wanted, calls_to_next], device=device)
        distributed.all_reduce(answer, distributed.ReduceOp.MAX)  # so that all ranks ask at the same call again
        self._asked, self._calls, self._ask_at = now, 0, int(answer[1])
        return bool(answer[0])

    # ------------------------------------------------------------------ loading

    def load(self) -> dict[str, Any]:
        """Restores all parts and the generators from the newest save that is whole; returns its values.

        Returns:
            What `save` was given, tensors on the CPU; `{}` if nothing was saved yet, and then nothing is changed.

        Raises:
            InputError: what was saved is of other parts, or damaged altogether.
        """
        state: dict[str, Any] | None = None

        def newest() -> int | None:
            nonlocal state
            state = self._folder.load() if self._folder.steps() else None
            return None if state is None else int(state["number"])

        number = _by_rank_0(newest)
        self._saved = self._asked = time.monotonic()
        if number is None:
            return {}
        state = state or self._folder.load(number)
        self._restore_parts(state)
        if self.random_states:
            _restore_generators(state["generators"])
        values: dict[str, Any] = state["values"]
        return values

    def _restore_parts(self, state: dict[str, Any]) -> None:
        saved, place = state["parts"], f"{self.folder} was saved"
        for name in saved.keys() ^ self.parts.keys():
            how = "without" if name in self.parts else "with"
            raise InputError(f"{place} {how} a part {name!r}; give the same parts, or another folder")
        for name, part in self.parts.items():
            kind, then = type(part).__name__, state["kinds"][name]
            if kind != then and not isinstance(part, nn.Module):
                raise InputError(f"{place} with a {then} as the part {name!r}, which is a {kind} now")
            try:
                if isinstance(part, nn.Module):
                    part.load_state_dict(saved[name])
                    load_other_buffers(part, state["buffers"][name])
                elif isinstance(part, Optimizer):
                    load_optimizer(part, _on_devices_of(part.state_dict(), saved[name]))
                else:
                    part.load_state_dict(_on_devices_of(part.state_dict(), saved[name]))
            except Exception as error:
                why = str(error) if isinstance(error, InputError) else in_one_line(error)
                raise InputError(f"{place} with another {name!r}, which cannot be restored: {why}") from error

    # ------------------------------------------------------------------ signals

    def __enter__(self) -> "Checkpoint":
        from trainwell.train.interrupt import deferred

        self._interrupted = self._signals.enter_context(deferred())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interrupted, self._interrupted = self._interrupted(), _never
        self._signals.close()
        if interrupted and error is None:
            raise KeyboardInterrupt("interrupted after the last save")


# ---------------------------------------------------------------------- parts


def other_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the buffers that a state dict leaves out, which training may change all the same."""
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def load_other_buffers(module: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Restores what `other_buffers` returned.

    Raises:
        KeyError: a buffer is missing.
    """
    for name, buffer in other_buffers(module).items():
        buffer.copy_(saved[name])


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimizer's state and lays it out in memory like its parameters, as it was before it was saved."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _bare(name: str, part: Any) -> Any:
    """Returns a part without what it was wrapped in to run faster."""
    if type(part).__name__ == "FullyShardedDataParallel":
        raise InputError(
            f"the part {name!r} is in pieces on several ranks (FSDP); save it with torch's own checkpoints"
        )
    if isinstance(part, nn.Module):
        part = bare(part)
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(part, method, None)):
            raise InputError(
                f"the part {name!r}, a {type(part).__name__}, has no {method}; give it to save() as a value"
            )
    return part


def _state_of(part: Any) -> Any:
    """Returns a part's state; functions in a scheduler's are code, and stay the scheduler's own."""
    state = part.state_dict()
    return _without_functions(state) if isinstance(part, LRScheduler) else state


def _without_functions(state: Any) -> Any:
    if type(state) is dict:
        return {name: _without_functions(item) for name, item in state.items() if not isinstance(item, _FUNCTIONS)}
    return [_without_functions(item) for item in state] if type(state) is list else state


def _on_devices_of(own: Any, saved: Any) -> Any:
    """Returns what was saved with each tensor on the device where the part has its own now."""
    if isinstance(saved, torch.Tensor) and isinstance(own, torch.Tensor):
        return saved.to(own.device)
    if type(saved) is dict and isinstance(own, dict):
        return {name: _on_devices_of(own.get(name), item) for name, item in saved.items()}
    if type(saved) is list and isinstance(own, list) and len(saved) == len(own):
        return [_on_devices_of(mine, item) for mine, item in zip(own, saved, strict=True)]
    return saved


# ---------------------------------------------------------------------- generators


def _generators() -> dict[str, Any]:
    states = {"python": _python_random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_generators(ranks: list[dict[str, Any]]) -> None:
    """Gives this rank its generators back; one that was not there before is seeded by rank 0's and its number."""
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if _distributed() else (1, 0)
    if ranks and len(ranks) != world:
        warnings.warn(
            f"saved on {len(ranks)} ranks and resumed on {world}: noise from torch's, NumPy's and Python's generators "
            "goes on otherwise than it would have",
            stacklevel=3,
        )
    if not ranks:
        return
    if rank >= len(ranks):
        random.seed_everything(hashlib.sha256(ranks[0]["torch"].numpy().tobytes()).hexdigest(), rank)
        return
    states = ranks[rank]
    _python_random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    if torch.backends.mps.is_available() and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


# ---------------------------------------------------------------------- processes


def _never() -> bool:
    return False


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _by_rank_0(do: Callable[[], _T]) -> _T:
    """Does something on rank 0 alone; all ranks wait, and return or raise what it does."""
    if not _distributed():
        return do()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = do()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: _T = outcome[0]
    return result


_held: dict[tuple[int, Path], Any] = {}  # open files, for as long as the process lives


def _hold(folder: Path) -> None:
    """Lets this process alone save in a folder, until it ends, however it does.

    A POSIX record lock: it belongs to the process, not to the workers that it forks, which may outlive it a while.
    """
    me = (os.getpid(), folder.resolve())
    if os.name == "nt" or me in _held:
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"another process saves in {folder}; end it, or choose another folder") from None
    except OSError:  # a file system without locks
        pass
    _held[me] = file
