"""What knows MMEngine's Runner: hooks, loaders, evaluation, launching."""
