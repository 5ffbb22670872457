"""Fuzzing of what reads files: see :mod:`tests.fuzz.targets`."""
