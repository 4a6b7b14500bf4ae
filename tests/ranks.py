"""One process of several that train together; in a file of its own, so that a fresh process can import it."""

import contextlib
import os
import signal
import warnings

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from trainwell.data import KeyedSampler
from trainwell.regularize import DropConnect, Dropout, FractionalMaxPool2d, StochasticDepth, keyed
from trainwell.train import Checkpoint


def train(folder, meeting, rank, ranks, stop, said):
    """Trains on two ranks with DDP, or on one without; after so many steps, if any, the last is told to stop."""
    torch.manual_seed(0)
    x = torch.randn(22, 3)
    data = TensorDataset(torch.arange(22), x, x.sum(1, keepdim=True))
    sampler = KeyedSampler(data)  # made before there are ranks
    bare = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    torch.manual_seed(10 + rank)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(bare)
    else:
        model = bare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data, 4 // ranks, sampler=sampler)
    checkpoint = Checkpoint(folder, model=model, optimizer=optimizer, sampler=sampler)
    with warnings.catch_warnings(record=True) as warned:
        step, rows_of = checkpoint.load().get("step", 0), {}
    with contextlib.suppress(KeyboardInterrupt), checkpoint:
        for _ in sampler.epochs(2):
            for rows, inputs, targets in sampler.batches(loader):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
                step += 1
                rows_of[step] = rows.tolist()
                if step == stop and rank == ranks - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                if step == stop:
                    checkpoint.every(0, step=step)
    weights = [value for parameter in bare.parameters() for value in parameter.flatten().tolist()]
    said.put((rank, rows_of, [str(warning.message) for warning in warned], torch.rand(()).item(), weights))
    _leave(said)


def gradient(meeting, rank, ranks, said):
    """Takes the gradient of a model with every kind of our noise, of the rows of a batch that are this rank's."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare = nn.Sequential(
        nn.Conv2d(1, 4, 3), Dropout(0.3, maps=True), StochasticDepth(0.3), FractionalMaxPool2d(0.7), nn.Flatten(),
        Dropout(0.4), DropConnect(nn.Linear(64, 3), 0.5),
    ).double()  # fmt: skip
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    torch.manual_seed(10 + rank)
    mine = range(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(bare)
    else:
        model = bare
    with keyed(model, 5, "noise", 7, rows=mine):
        nn.functional.cross_entropy(model(x[mine.start : mine.stop]), y[mine.start : mine.stop]).backward()
    said.put([p.grad.tolist() for p in bare.parameters()])
    _leave(said)


def _leave(said):
    """Ends the process without freeing its group, for which torch can wait with the lock that the group's thread needs.

    Seen with torch 2.13, once in ten runs: `~ProcessGroupGloo` joins a thread that is about to release a Python object.
    """
    if distributed.is_initialized():
        distributed.barrier()
    said.close()
    said.join_thread()
    os._exit(0)
