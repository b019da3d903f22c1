"""Routes: each translates between HTTP and the store or the engine, and decides nothing else."""
