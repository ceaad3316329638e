"""The machine: files, budgets, locks, seals, blocks, signals, devices, randomness, environment, progress."""
