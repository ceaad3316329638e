"""Many runs: sweeps, jobs, and the paper's tables and figures."""
