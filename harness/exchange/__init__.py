"""Results of other code in, ours out, as tables of episodes."""
