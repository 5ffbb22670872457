"""Scoring: text to token ids, token ids to log-probabilities, one file a backend."""
