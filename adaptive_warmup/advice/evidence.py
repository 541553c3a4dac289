"""What advice is made of: reasons and cautions, each with its source. The sources are named here, once."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """Why a part of the advice is as it is. `part` names the setting of `Config`, or what else it is about."""

    part: str
    text: str
    source: str


class Caution(NamedTuple):
    """A setting of the plan that asks for trouble: its name and value, why, what to do, and who says so."""

    setting: str
    value: str
    why: str
    remedy: str
    source: str


DEMO = "recorded demo, docs/demo.md"
TUNING = "tuning seeds of the stability study: 30k parameters, two tasks, 3 or 4 seeds (docs/study.md)"
PILOT = "pilot runs of PPO, not kept here: 25k parameters, two tasks, 3 or 4 seeds"
PROBE = "pilot runs of the probe, not kept here: 68k parameters, 2 or 3 seeds"
JUDGEMENT = "judgement: not measured"
UNTUNED = "Ma & Yarats 2021, arXiv 1910.04209"
KL_BLOG = "Schulman 2020, Approximating KL Divergence, joschu.net/blog/kl-approx.html"
SEARCH_R1 = "Search-R1's launch scripts v0.1, v0.2, v0.3"
ARTICLE = "article on Search-R1's warmup (gitcode, 2025-07-05)"
MASK = "Search-R1 PR #21, 14 March 2025"
COLLAPSES = "ConvSearch-R1#6 (270-300 steps), Agent-R1#8 (about 60), RAGEN#52 (63-68), Search-R1#89 (about 600)"
NEGATIVE_KL = "TRL #235, #736, #925: negative KL"
LORA = "Schulman et al. 2025, LoRA Without Regret; HelloAgents#107: collapse at 5e-5, stable at 1e-6"
LOGS = "your decision logs"
TWO_WARMUPS = 'docs/troubleshooting.md, "Two warmups multiply"'
