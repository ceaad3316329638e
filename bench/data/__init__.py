"""Datasets as integer tensors, which of their images stand for all, augmentation, corruptions."""
