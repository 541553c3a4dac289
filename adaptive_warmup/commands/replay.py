"""`adaptive-warmup replay`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_warmup.commands.arguments import Commands, count, needs, positive
from adaptive_warmup.quoting import plural

if TYPE_CHECKING:
    from adaptive_warmup.readers import Found
    from adaptive_warmup.replay import Moment, Setup
    from adaptive_warmup.verdict import Ringing, Verdict

_MOST_EVENTS = 12  # shown, and as many alarms; all of them are in --json
_MOST_UNUSED = 12
_MOST_DRAWN = 20_000  # rows: a page of more is slow to open
_NOTABLE = 1.05  # times above what a run bears: less is shown as 1


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "replay",
        help="what the controller would have done on a run of the past, from its log",
        description="Reads the log of a run of the past: a decision log, transformers' trainer_state.json, TensorBoard"
        " event files, W&B's export or offline run, verl's and Search-R1's console log or JSON lines, any CSV or JSON"
        " lines. Says what it took as what, which alarms would have rung and how long before the run died, and what"
        " the learning rate would have done, and how sure that is.",
        epilog="Exit code: 0 no alarm would have rung, 1 some would, 2 bad input.",
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="a log, or the folder of one run")
    parser.add_argument("--lr", type=positive, help="peak of the run's schedule (default: the highest in the log)")
    parser.add_argument(
        "--warmup-steps",
        type=count,
        help="nominal warmup, in steps of the log (default: the run's own where its lr shows one, else a tenth of the"
        " run); where the log has no lr, also the warmup that the run is taken to have had",
    )
    parser.add_argument("--target-kl", type=positive, help="nats per token a step (default: 0.01)")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=SIGNAL",
        help="a key of yours: lr, kl, kl:in_loop, task_reward, kl_reward, grad_norm, loss, ... (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", help="draw the run and the replay as an HTML page")
    parser.add_argument("--force", action="store_true", help="replace PAGE if it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, replay, print."""
    from adaptive_warmup.readers import decision_log, read
    from adaptive_warmup.replay import replay, setup
    from adaptive_warmup.verdict import judge

    _check_output(arguments)
    try:
        found = read(arguments.log, dict(arguments.map))
    except TypeError as error:  # an unknown signal in --map
        raise ValueError(str(error)) from error
    base, peak = decision_log.settings(found.path) if found.format is decision_log else (None, None)
    given = setup(found.past, base, arguments.lr or peak, arguments.warmup_steps, arguments.target_kl)
    moments = replay(found.past, given)
    kept: list[Moment] = []
    verdict = judge(found.past, _keeping(kept, moments, len(found.past.steps)) if arguments.output else moments)
    if arguments.json:
        print(json.dumps(_plain(found, given, verdict), allow_nan=False))
    else:
        print("\n".join(_text(found, given, verdict)))
    if arguments.output:
        _draw(arguments.output, found, given, kept)
        some = f", one row in {every}" if (every := _stride(len(found.past.steps))) > 1 else ""
        print(f"{arguments.output}{some}", file=sys.stderr)
    return 1 if verdict.alarms else 0


def _pair(text: str) -> tuple[str, str]:
    key, sign, signal = text.rpartition("=")
    if not (key and sign and signal):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=SIGNAL")
    return key, signal


def _check_output(arguments: argparse.Namespace) -> None:
    if arguments.output:
        needs("plotly")
        if arguments.output.exists() and not arguments.force:
            raise ValueError(f"{arguments.output} exists: choose another name, or say --force.")


def _stride(rows: int) -> int:
    return math.ceil(rows / _MOST_DRAWN)


def _keeping(kept: list[Moment], moments: Iterator[Moment], rows: int) -> Iterator[Moment]:
    """The moments, of which those to be drawn are kept: all, or one in so many and the last."""
    every = _stride(rows)
    for row, moment in enumerate(moments):
        if row % every == 0 or row == rows - 1:
            kept.append(moment)
        yield moment


def _text(found: Found, given: Setup, verdict: Verdict) -> Iterator[str]:
    past = found.past
    steps = f"{plural(len(past.steps), 'step')}, {past.steps[0]} to {past.steps[-1]}"
    yield f"{found.path}: {found.format.NAME}, {steps}" + (f", every {past.every}" if past.every > 1 else "")
    yield "\ntaken"
    wide = max(len(one.signal) for one in past.taken), max(len(one.key) for one in past.taken)
    for one in past.taken:
        yield f"  {one.signal:{wide[0]}}  {one.key:{wide[1]}}  {one.what} ({one.host})"
    yield from _listed("not taken", [f"{key}: {why}" for key, why in past.unused.items()], _MOST_UNUSED)
    yield from _listed("the file", found.notes)
    yield from _listed("assumed", list(given.assumed))
    yield "\nthe run"
    yield from (f"  {line}" for line in _run(given, verdict))
    yield "\nalarms that would have rung" if verdict.alarms else "\nno alarm would have rung"
    yield from (f"  {_rang(one)}" for one in verdict.alarms[:_MOST_EVENTS])
    if len(verdict.alarms) > _MOST_EVENTS:
        yield f"  and {len(verdict.alarms) - _MOST_EVENTS} more (--json lists them)"
    warmup = plural(given.warmup_steps, "step")
    yield f"\nwhat the lr would have done (warmup {warmup}, target kl {given.config.target_kl:g})"
    yield from (f"  {line}" for line in _lr(given, verdict))


def _listed(title: str, items: list[str], most: int | None = None) -> Iterator[str]:
    if items:
        yield f"\n{title}"
        yield from (f"  {item}" for item in items[:most])
        if most and len(items) > most:
            yield f"  and {len(items) - most} more"


def _run(given: Setup, verdict: Verdict) -> Iterator[str]:
    rates = given.rates
    if rates.peak:
        own = f", its own warmup {plural(rates.warmup_steps, 'step')}" if rates.warmup_steps else ""
        yield f"peak lr {rates.peak:.3g}{own}"
    yield f"died at step {verdict.death.step}: {verdict.death.why}" if verdict.death else "did not die"


def _rang(one: Ringing) -> str:
    when = f"step {one.first}" + (f" to {one.last}" if one.rows > 1 else "")
    lead = ""
    if one.lead is not None:
        lead = f", {plural(one.lead, 'step')} before the run died" if one.lead else ", as the run died"
    return f"{one.name}: {when}{lead}: {one.message}"


def _lr(given: Setup, verdict: Verdict) -> Iterator[str]:
    for event in verdict.events[:_MOST_EVENTS]:
        yield f"after step {event.step}{'' if event.certain else ' (*)'}: {event.what}, factor {event.factor:.2g}"
    if len(verdict.events) > _MOST_EVENTS:
        yield f"and {len(verdict.events) - _MOST_EVENTS} more (--json lists them)"
    if verdict.differs is not None:
        yield f"(*) a guess: from step {verdict.differs} on the controller's lr would have been another than the run's"
    whole = f"a KL of {given.config.target_kl:g}, the whole target"
    if verdict.ceiling:
        lr = f" (lr {verdict.ceiling * given.rates.peak:.2g})" if given.rates.peak else ""
        yield f"at its end the run bears {verdict.ceiling:.2g} times its peak{lr} at {whole}"
    if verdict.most >= _NOTABLE:
        far = f"; at step {verdict.far_above} first by more than a factor of 2" if verdict.far_above is not None else ""
        count = plural(verdict.above, "step")
        yield f"at {count} its lr was above what it bears at {whole}, by up to {verdict.most:.2g} times{far}"


def _plain(found: Found, given: Setup, verdict: Verdict) -> dict[str, Any]:
    past = found.past
    return {
        "path": str(found.path),
        "format": found.format.NAME,
        "steps": {"count": len(past.steps), "first": int(past.steps[0]), "last": int(past.steps[-1]),
                  "every": past.every},
        "taken": [one._asdict() for one in past.taken],
        "not_taken": dict(past.unused),
        "file": found.notes,
        "assumed": list(given.assumed),
        "run": {"peak_lr": given.rates.peak, "warmup_steps": given.rates.warmup_steps},
        "controller": {"warmup_steps": given.warmup_steps, "target_kl": given.config.target_kl},
        **asdict(verdict),
        "death": verdict.death._asdict() if verdict.death else None,
        "events": [event._asdict() for event in verdict.events],
    }  # fmt: skip


def _draw(output: Path, found: Found, given: Setup, moments: list[Moment]) -> None:
    """Two lines on the report's page: the run as it was, and the lr that the controller would have set."""
    from adaptive_warmup import history, report

    about = {"log": found.path.name, "format": found.format.NAME}
    peak = given.rates.peak or 1.0
    origin = moments[0].step - found.past.every + 1  # a row is a decision, however many steps it stands for
    was = [_was(m, after.own, peak) for m, after in zip(moments, [*moments[1:], moments[-1]], strict=True)]
    would = [_decided(m, m.factor * m.used / m.own * peak if m.own > 0.0 else m.factor * peak) for m in moments]
    config = replace(given.config, warmup_steps=given.warmup_steps, min_warmup_steps=None)  # in steps of the log
    fixed = replace(config, law="linear")
    runs = [history.Run(fixed, {"arm": "the run as it was", **about}, was, origin=origin),
            history.Run(config, {"arm": "the controller, replayed", **about}, would, origin=origin)]  # fmt: skip
    report.write(output, runs, title=f"Replay of {found.path.name}")


def _was(moment: Moment, after: float, peak: float) -> dict[str, Any]:
    """A line of the log that a fixed warmup would have left; `after` is its factor in the next step."""
    phase = "done" if after == 1.0 else "warmup"
    signals = _reported(moment)
    return {"step": moment.step, "lr": moment.used * peak, "signals": signals, "next": after, "phase": phase,
            "reasons": ()}  # fmt: skip


def _reported(moment: Moment) -> dict[str, Any]:
    from adaptive_warmup.signals import NAMES

    pairs = ((name, getattr(moment.signals, name)) for name in NAMES)
    found = {name: value for name, value in pairs if value is not None and math.isfinite(value)}
    return {**found, "kl_source": moment.signals.kl_source}


def _decided(moment: Moment, lr: float) -> dict[str, Any]:
    decision = moment.decision
    step = {"step": moment.step, "lr": lr, "signals": {"kl_source": moment.signals.kl_source}, "factor": moment.factor,
            "next": decision.factor, "phase": decision.phase, "reasons": decision.reasons,
            "alarms": decision.alarms}  # fmt: skip
    return step | ({"ceiling": decision.ceiling} if decision.ceiling is not None else {})
