"""Public data sets by name: where they are, what they must be, and their terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seqtune.data.remote import fetch, unpacked
from seqtune.errors import UserError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
SNAP = "https://snap.stanford.edu/data"
AMAZON_2023 = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/rating_only"
)
OF_MOVIELENS = "MovieLens, by GroupLens: for research, not to be passed on (its README)"
OF_AMAZON = "Amazon reviews, by J. McAuley: its authors ask to be cited"


@dataclass(frozen=True)
class Public:
    """A data set that somebody publishes."""

    address: str
    terms: str
    checksum: str = ""  # sha256:... or md5:...; nobody has published one where it is empty
    member: str = ""  # of a zip file
    columns: Mapping[str, str] = field(default_factory=dict)  # that are named, as options are

    @property
    def note(self) -> str:
        """What somebody who uses it should know."""
        unchecked = "" if self.checksum else "; no checksum is published, so nothing was checked"
        return f"{self.terms}{unchecked}"


def _movielens(size: str, member: str, checksum: str) -> Public:
    return Public(f"{GROUPLENS}/ml-{size}.zip", OF_MOVIELENS, checksum, f"ml-{size}/{member}")


def _amazon(category: str) -> Public:
    place = f"{SNAP}/amazon/productGraph/categoryFiles/reviews_{category}_5.json.gz"
    return Public(place, f"{OF_AMAZON} (2014, 5-core)")


PUBLIC = {
    "ml-100k": _movielens(
        "100k",
        "u.data",
        "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": _movielens(
        "1m",
        "ratings.dat",
        "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "ml-20m": _movielens(
        "20m",
        "ratings.csv",
        "sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    ),
    "ml-25m": _movielens(
        "25m",
        "ratings.csv",
        "sha256:8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    ),
    "ml-32m": _movielens("32m", "ratings.csv", "md5:d472be332d4daa821edc399621853b57"),
    "amazon-beauty": _amazon("Beauty"),
    "amazon-sports": _amazon("Sports_and_Outdoors"),
    "amazon-toys": _amazon("Toys_and_Games"),
    "amazon-games": _amazon("Video_Games"),
    "gowalla": Public(
        f"{SNAP}/loc-gowalla_totalCheckins.txt.gz",
        "Gowalla, by SNAP: its authors ask to be cited",
        columns={"user_col": "1", "time_col": "2", "item_col": "5"},
    ),
}
# Sets that are behind a form, or in a format that is not read: the reader takes the file's path.
BY_HAND = {
    "yelp": "https://www.yelp.com/dataset",
    "lastfm": "https://grouplens.org/datasets/hetrec-2011/",
    "steam": "https://cseweb.ucsd.edu/~jmcauley/datasets.html",
    "retailrocket": "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
    "diginetica": "https://competitions.codalab.org/competitions/11161",
    "recsys-yoochoose": "https://s3-eu-west-1.amazonaws.com/yc-rdata/yoochoose-data.7z",
}
CATEGORY = re.compile(r"amazon-2023-(\w+)")  # as the files are called: amazon-2023-All_Beauty


def known(name: str) -> Public | None:
    """Returns the data set of a name; None where there is none.

    Raises:
        UserError: it has to be fetched by hand.
    """
    if name in BY_HAND:
        raise UserError(
            f"--data {name}: is not to be had by a program; fetch it from {BY_HAND[name]}, and "
            "give the file's path"
        )
    if found := CATEGORY.fullmatch(name):
        return Public(f"{AMAZON_2023}/{found[1]}.csv.gz", f"{OF_AMAZON} (2023, 5-core)")
    return PUBLIC.get(name)


def get(one: Public) -> Path:
    """Returns the file of a data set, downloaded on first use."""
    file = fetch(one.address, one.checksum)
    return unpacked(file, one.member) if one.member else file
