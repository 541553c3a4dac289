"""Runs the arms of the demo side by side, shows them live, and draws the report."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adaptive_warmup import history, report
from adaptive_warmup.demo.arm import ARMS, Progress, Settings, quiet, run
from adaptive_warmup.ppo.reference import reference
from adaptive_warmup.ppo.tasks import make

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["Settings", "demo"]
_SCORE_STEPS = 8  # the score shown is a mean over so many steps


def demo(settings: Settings, output: Path) -> int:
    """Run all arms, print the table, write `output`/report.html. Returns the exit code (130 after Ctrl-C)."""
    console = Console()
    quiet()
    output.mkdir(parents=True, exist_ok=True)
    reference(make(settings.task), settings.size)  # made and cached before the arms start, or they would all make it
    begin, code = time.monotonic(), 0
    context = multiprocessing.get_context("spawn")
    messages: Queue[Progress] = context.Queue()
    runs = [context.Process(target=run, args=(arm, settings, output, messages.put), daemon=True) for arm in ARMS]
    for arm in ARMS:
        (output / f"{arm.slug}.jsonl").unlink(missing_ok=True)
    try:
        for process in runs:
            process.start()
        _show(console, settings, messages, runs)
    except KeyboardInterrupt:
        console.print("interrupted: the report shows what was done")
        code = 130
    finally:
        for process in [one for one in runs if one.pid]:
            process.terminate()
            process.join()
    if not code and any(process.exitcode for process in runs):
        console.print("[bold]an arm failed; see its error above[/bold]")
        code = 1
    _finish(console, output, time.monotonic() - begin)
    return code


def _show(console: Console, settings: Settings, messages: Queue[Progress], runs: Sequence[BaseProcess]) -> None:
    """Follow the arms until all have ended: a live table on a terminal, now and then a line elsewhere."""
    seen: dict[str, list[Progress]] = {arm.name: [] for arm in ARMS}
    every = max(settings.steps // 10, 1)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while any(process.is_alive() for process in runs) or not messages.empty():
            try:
                news = messages.get(timeout=0.2)
            except queue.Empty:
                continue
            seen[news.arm].append(news)
            if console.is_terminal:
                live.update(_live_table(settings, seen), refresh=True)
            elif (news.step + 1) % every == 0:
                console.print(
                    f"{news.arm:11} step {news.step + 1:4}/{settings.steps}  lr {news.lr:.2e}"
                    f"  score {_score(seen[news.arm]):.2f}  {news.phase}: {news.reason}",
                    soft_wrap=True,
                    highlight=False,
                )


def _live_table(settings: Settings, seen: dict[str, list[Progress]]) -> Group:
    """A row for each arm, and the reasons below, where they have the room on a narrow terminal too."""
    table = Table(title=f"{settings.task}, peak lr {settings.lr:g}", title_justify="left")
    for name in ("warmup", "step", "", "lr", "score", "phase"):
        table.add_column(name, no_wrap=True)
    for name, news in seen.items():
        if not news:
            table.add_row(name, "starting")
            continue
        now = news[-1]
        bar = ProgressBar(total=settings.steps, completed=now.step + 1, width=16)
        step = f"{now.step + 1}/{settings.steps}"
        table.add_row(name, step, bar, f"{now.lr:.2e}", f"{_score(news):.2f}", now.phase)
    return Group(table, *(Text(f"{name}: {news[-1].reason}") for name, news in seen.items() if news))


def _score(news: list[Progress]) -> float:
    recent = [one.score for one in news[-_SCORE_STEPS:]]
    return sum(recent) / len(recent)


def _finish(console: Console, output: Path, seconds: float) -> None:
    paths = [output / f"{arm.slug}.jsonl" for arm in ARMS]
    runs = [done for path in paths if path.exists() and (done := history.read(path)).steps]
    if not runs:
        console.print("no step was done: nothing to report")
        return
    table = Table(*report.COLUMNS)
    for outcome in map(report.outcome, runs):
        table.add_row(*outcome.row())
    console.print(table)
    for done in runs:
        console.print(f"[bold]{done.about['arm']}[/bold]: {report.in_words(done)}", highlight=False)
    report.write(output / "report.html", runs)
    console.print(f"{output / 'report.html'}  ({seconds:.0f} s)", highlight=False)
