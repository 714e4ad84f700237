"""A study in MLflow: the only room that imports it.

The driver alone writes, from one background thread: importing MLflow costs seconds, and a server
may be slow or away. A call appends one line to a journal file and returns; the thread works the
journal off. Everything it does can be done twice with the same result (runs are found by their
tags, steps that are there are left alone), so that a journal may be resent after a crash, and a
resumed study may report its past again.

One experiment per study, a parent run for the study and a child run per trial.
"""

from seqtune.track.champion import BY_HAND, REFRESHED, Registered, fetch, fetch_file
from seqtune.track.experiment import REFRESHES
from seqtune.track.forget import forget
from seqtune.track.logged import Found, best_of
from seqtune.track.pages import Links
from seqtune.track.store import store_uri
from seqtune.track.tracker import Tracker

__all__ = [
    "BY_HAND",
    "REFRESHED",
    "REFRESHES",
    "Found",
    "Links",
    "Registered",
    "Tracker",
    "best_of",
    "fetch",
    "fetch_file",
    "forget",
    "store_uri",
]
