"""The built-in algorithms, by name. Each is loaded only when it is asked for."""

BUILTINS = {
    "lspc": "algorithms.lspc:LSPC",
    "bc": "algorithms.bc:BC",
}
