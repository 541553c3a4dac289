"""Trains the policies that the runs start from, on demonstrations with mistakes, and keeps them beside the results.

python -m benchmarks.experiments.stability.references
python -m benchmarks.experiments.stability.references --size large --device cuda
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks.experiments.stability.network import SIZES, Shape, Weights, hidden, initial, logits, stack
from benchmarks.experiments.stability.rollout import Sampler
from benchmarks.experiments.stability.worlds import EOS, EVALUATION, PAD, POOL, TASKS, World, world

FOLDER = Path(__file__).parents[2] / "results" / "stability" / "references"
COUNT = 2  # reference policies of each task
STEPS, BATCH = 1500, 64
LR = {"small": 4e-3, "large": 2e-3}
SAME = {"search_leak": "search", "sorting_barred": "number_sorting"}  # variants start from the same policies


def shape_of(made: World, size: str = "small") -> Shape:
    """The policy's shape in that world."""
    return Shape(made.size, made.positions, *SIZES[size])


def references(task: str, size: str = "small") -> list[Weights]:
    """The reference policies of a task.

    Raises:
        FileNotFoundError: they have not been made.
    """
    path = _path(SAME.get(task, task), size)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m benchmarks.experiments.stability.references --size {size}`"
        )
    return [{k: v.float() for k, v in one.items()} for one in torch.load(path, weights_only=True)]


def _path(task: str, size: str) -> Path:
    return FOLDER / f"{task}.pt" if size == "small" else FOLDER / size / f"{task}.pt"


def make(task: str, size: str, device: str) -> list[Weights]:
    """Train all reference policies of a task at once; positions enough for its variants."""
    made = world(task)
    longest = max(world(name).positions for name in TASKS if SAME.get(name, name) == task)
    shape = shape_of(made, size)._replace(positions=longest)
    stacked = stack([initial(shape, seed) for seed in range(COUNT)])
    weights = {name: tensor.to(device).requires_grad_() for name, tensor in stacked.items()}
    parameters, lr = list(weights.values()), LR[size]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, STEPS, pct_start=0.05, cycle_momentum=False)
    rngs = [random.Random(f"{task} {seed}") for seed in range(COUNT)]
    bar = tqdm(range(STEPS), task, unit="step")
    for _ in bar:
        batches = [_demonstrations(made, rng) for rng in rngs]
        ids, learnt = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*batches, strict=True))
        out = hidden(shape, weights, ids[..., :-1])
        picked = logits(weights, out)[learnt[..., 1:]]
        loss = cross_entropy(picked, ids[..., 1:][learnt[..., 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return [{name: tensor[i].detach().cpu().clone() for name, tensor in weights.items()} for i in range(COUNT)]


def _demonstrations(made: World, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and what of them is learnt, each (BATCH, S)."""
    prompts = made.prompts
    ids = np.full((BATCH, made.positions), PAD)
    learnt = np.zeros(ids.shape, dtype=bool)
    for row in range(BATCH):
        problem = rng.randrange(POOL)
        tokens, own = list(prompts[problem]), [False] * prompts.shape[1]
        for text, written in made.demonstrate(made.problems[problem], rng):
            piece = made.encode(text)
            tokens += piece
            own += [written] * len(piece)
        tokens, own = [*tokens, EOS][: ids.shape[1]], [*own, True][: ids.shape[1]]
        ids[row, : len(tokens)], learnt[row, : len(own)] = tokens, own
    return ids, learnt


def scores(task: str, size: str, device: str) -> list[float]:
    """The mean score of each reference policy on the evaluation problems."""
    made, rng = world(task), np.random.default_rng(0)
    weights = {name: tensor.to(device) for name, tensor in stack(references(task, size)).items()}
    problems = np.tile(np.arange(POOL, POOL + EVALUATION), (COUNT, 1))
    noise = rng.random((COUNT, EVALUATION, made.length))
    episodes = Sampler(made, shape_of(made, size))(weights, problems, noise)
    return episodes.scores_RB.mean(1).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in TASKS if name not in SAME]
    parser.add_argument("tasks", nargs="*", default=known, metavar="TASK", help=", ".join(known))
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--device", default="cpu", help="torch's name of it, such as cuda")
    args = parser.parse_args(argv)
    if unknown := set(args.tasks) - set(known):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    for task in args.tasks:
        path = _path(task, args.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([{k: v.half() for k, v in one.items()} for one in make(task, args.size, args.device)], path)
        found = [round(score, 3) for score in scores(task, args.size, args.device)]
        print(task, "score of the references:", found, flush=True)


if __name__ == "__main__":
    main()
