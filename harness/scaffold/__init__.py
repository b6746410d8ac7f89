"""What ``lspc-bench new`` writes: a small package with an algorithm of the user's own."""
