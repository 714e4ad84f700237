"""``seqtune recommend``: the best next items of every user in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from seqtune.cli.flags import takes
from seqtune.cli.ready import lasting
from seqtune.data import locate
from seqtune.errors import UserError
from seqtune.options import RecommendOptions
from seqtune.storage import check_place


@takes(RecommendOptions)
def recommend(options: RecommendOptions) -> None:
    """Writes the best next items of every user in a file."""
    checkpoint, source = options.checkpoint, options.data
    if checkpoint is None:
        raise UserError("--checkpoint: name the folder of a checkpoint; tune and train print it")
    if source is None:
        raise UserError("--data: name a file with the interactions of the users")
    locate(source)
    registered = checkpoint.startswith("models:/")
    if not registered:
        check_place("--checkpoint", checkpoint)
        if "://" not in checkpoint and not Path(checkpoint).expanduser().is_dir():
            raise UserError(f"--checkpoint {checkpoint}: no such folder; tune and train print it")
    from seqtune.recommend import recommend_file
    from seqtune.storage import Folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder.at(checkpoint)
        if registered:
            from seqtune.track import fetch, store_uri

            store = store_uri(options.tracking_uri, Folder.at(lasting(options.storage)))
            folder = fetch(checkpoint, store, Path(scratch))
        written = recommend_file(
            folder,
            source,
            options.out,
            k=options.k,
            exclude_seen=options.exclude_seen,
            user_col=options.user_col,
            item_col=options.item_col,
            time_col=options.time_col,
        )
    print(f"{written.n_rows:,} recommendations for {written.n_users:,} users in {options.out}")
    if written.unknown:
        some = ", ".join(map(str, written.unknown[:5]))
        more = ", ..." if len(written.unknown) > 5 else ""
        print(f"{len(written.unknown):,} items are unknown to the model, ignored: {some}{more}")
    if written.n_popular:
        print(f"{written.n_popular:,} users have no known item and got the most popular ones")
