"""What the studies ask, by name, apart from what draws them: a list of them waits for nothing heavy."""

from __future__ import annotations

QUESTIONS = {
    "tradeoff": "how reward trades against cost as LSPC's latent box, threshold and cost temperature vary",
    "scarcity": "what is left with little data, and with few safe trajectories among many unsafe ones",
    "noise": "what noisy observations and disguised trajectories do (DSRL's filters)",
    "samples": "how the return gap and violations fall with the number of trajectories, beside the bound's rate",
    "scaling": "what an update and an action cost as observations grow from 16 to 4,096 numbers (made-up data)",
    "limits": "what agents that need no new training do at cost limits from 2.5 to 80",
    "selection": "what choosing a checkpoint, or a policy, without roll-outs costs",
}
