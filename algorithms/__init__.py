"""The built-in algorithms, by name. Each is loaded only when it is asked for."""

BUILTINS = {
    "lspc": "algorithms.lspc:LSPC",
    "bc": "algorithms.bc:BC",
    "bcq-lag": "algorithms.bcq_lag:BCQLag",
    "bear-lag": "algorithms.bear_lag:BEARLag",
    "cpq": "algorithms.cpq:CPQ",
    "coptidice": "algorithms.coptidice:COptiDICE",
    "cdt": "algorithms.cdt:CDT",
}
