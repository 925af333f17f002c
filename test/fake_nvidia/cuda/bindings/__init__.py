"""Stands in for cuda-python, which needs an NVIDIA GPU and its driver."""
