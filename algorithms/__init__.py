"""The built-in algorithms, by name. Each is loaded only when it is asked for.

Methods, to be read from top to bottom, a module each::

    lspc                          what this benchmark is about
    bc, cdt                       cloning of actions, of sequences told a return and a cost
    bcq_lag, bear_lag, cpq        Q-learning held to the data, and to a cost limit
    coptidice                     weights of the data's distribution
    caps, ccac, fisor, trac       what newer papers compare with

What they are made of, in ``parts``::

    methods                       settings, columns and scales of all that value transitions
    networks, cvae                stacked layers and networks, and what builds them; the action VAE of OSRL's baselines
    transformer, attention        CDT's network
    diffusion, dropout            FISOR's network and process; masks of each replica's own
    losses, critics               expectiles, divergences, means; ensembles, their targets and their losses
    lagrangian, limits            PID and learned multipliers, twin critics under one; cost limits as thresholds
    optimisers, schedules         steps of all replicas, targets that follow; learning rates
    policies, diagnostics         how networks act; critics against what was observed

``osrl`` holds OSRL's own code behind the same interface, to compare the methods with.
"""

BUILTINS = {
    "lspc": "algorithms.lspc:LSPC",
    "bc": "algorithms.bc:BC",
    "bcq-lag": "algorithms.bcq_lag:BCQLag",
    "bear-lag": "algorithms.bear_lag:BEARLag",
    "cpq": "algorithms.cpq:CPQ",
    "coptidice": "algorithms.coptidice:COptiDICE",
    "cdt": "algorithms.cdt:CDT",
    "caps": "algorithms.caps:CAPS",
    "ccac": "algorithms.ccac:CCAC",
    "fisor": "algorithms.fisor:FISOR",
    "trac": "algorithms.trac:TraC",
    "osrl-bc": "algorithms.osrl.adapters:OSRLBC",
    "osrl-bcq-lag": "algorithms.osrl.adapters:OSRLBCQLag",
    "osrl-bear-lag": "algorithms.osrl.adapters:OSRLBEARLag",
    "osrl-cpq": "algorithms.osrl.adapters:OSRLCPQ",
    "osrl-coptidice": "algorithms.osrl.adapters:OSRLCOptiDICE",
    "osrl-cdt": "algorithms.osrl.adapters:OSRLCDT",
}
