"""Models from and to elsewhere: checkpoints, files of one's own, RobustBench, AutoAttack, Hugging Face."""
