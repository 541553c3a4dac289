"""The policies that the runs start from: trained on demonstrations with mistakes, kept beside the results.

python -m benchmarks.experiments.stability.references
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks.experiments.stability.network import Shape, Weights, hidden, initial, logits, stack
from benchmarks.experiments.stability.rollout import Sampler
from benchmarks.experiments.stability.worlds import EOS, EVALUATION, PAD, POOL, TASKS, World, world

FOLDER = Path(__file__).parents[2] / "results" / "stability" / "references"
COUNT = 2  # reference policies of each task
STEPS, BATCH, LR = 1500, 64, 4e-3
SAME = {"search_leak": "search", "sorting_barred": "number_sorting"}  # variants start from the same policies


def shape_of(made: World) -> Shape:
    """The policy's shape in that world."""
    return Shape(made.size, made.positions)


def references(task: str) -> list[Weights]:
    """The reference policies of a task.

    Raises:
        FileNotFoundError: they have not been made.
    """
    path = FOLDER / f"{SAME.get(task, task)}.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m benchmarks.experiments.stability.references`")
    return [{k: v.float() for k, v in one.items()} for one in torch.load(path, weights_only=True)]


def make(task: str) -> list[Weights]:
    """Train all reference policies of a task at once; positions enough for its variants."""
    made = world(task)
    longest = max(world(name).positions for name in TASKS if SAME.get(name, name) == task)
    shape = shape_of(made)._replace(positions=longest)
    weights = stack([initial(shape, seed) for seed in range(COUNT)])
    parameters = [tensor.requires_grad_() for tensor in weights.values()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.05, cycle_momentum=False)
    rngs = [random.Random(f"{task} {seed}") for seed in range(COUNT)]
    bar = tqdm(range(STEPS), task, unit="step")
    for _ in bar:
        batches = [_demonstrations(made, rng) for rng in rngs]
        ids, learnt = (torch.from_numpy(np.stack(part)) for part in zip(*batches, strict=True))
        out = hidden(shape, weights, ids[..., :-1])
        picked = logits(weights, out)[learnt[..., 1:]]
        loss = cross_entropy(picked, ids[..., 1:][learnt[..., 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return [{name: tensor[i].detach().clone() for name, tensor in weights.items()} for i in range(COUNT)]


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


def scores(task: str) -> list[float]:
    """The mean score of each reference policy on the evaluation problems."""
    made, rng = world(task), np.random.default_rng(0)
    weights = stack(references(task))
    problems = np.tile(np.arange(POOL, POOL + EVALUATION), (COUNT, 1))
    noise = rng.random((COUNT, EVALUATION, made.length))
    episodes = Sampler(made, shape_of(made))(weights, problems, noise)
    return episodes.scores_RB.mean(1).tolist()


def main(tasks: list[str]) -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task in tasks or [name for name in TASKS if name not in SAME]:
        torch.save([{k: v.half() for k, v in one.items()} for one in make(task)], FOLDER / f"{task}.pt")
        print(task, "score of the references:", [round(score, 3) for score in scores(task)])


if __name__ == "__main__":
    main(sys.argv[1:])
