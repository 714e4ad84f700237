"""seqtune tunes sequential recommenders: your interactions in, the best checkpoint out."""

__version__ = "0.1.0"
