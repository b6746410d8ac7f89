"""The built-in algorithms, by name. Each is loaded only when it is asked for."""

BUILTINS = {
    "lspc": "algorithms.lspc:LSPC",
    "bc": "algorithms.bc:BC",
    "bcq-lag": "algorithms.bcq_lag:BCQLag",
    "bear-lag": "algorithms.bear_lag:BEARLag",
    "cpq": "algorithms.cpq:CPQ",
    "coptidice": "algorithms.coptidice:COptiDICE",
    "cdt": "algorithms.cdt:CDT",
    "osrl-bc": "algorithms.osrl:OSRLBC",
    "osrl-bcq-lag": "algorithms.osrl:OSRLBCQLag",
    "osrl-bear-lag": "algorithms.osrl:OSRLBEARLag",
    "osrl-cpq": "algorithms.osrl:OSRLCPQ",
    "osrl-coptidice": "algorithms.osrl:OSRLCOptiDICE",
    "osrl-cdt": "algorithms.osrl:OSRLCDT",
}
