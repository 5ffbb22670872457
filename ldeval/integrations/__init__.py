"""Results that other tools wrote: the paper authors' files, TRL's trainer log."""
