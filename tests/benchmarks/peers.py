"""How fast seqtune trains and evaluates beside other libraries, on the same machine and data.

    python tests/benchmarks/peers.py --data FOLDER [--case 'sasrec-*'] [--page docs/performance.md]

Each peer has a virtual environment below ``--envs``, made with pip where it is absent, and runs its
own code there, with its own loaders, loop and evaluation (see the scripts in ``peers/``). For each
case peer and seqtune take turns, so that a busy hour of the machine hits both, and medians are
compared. FOLDER has ml-100k.parquet, ml-1m.parquet and beauty.parquet: users together, each user's
events in order. Nothing runs on a GPU.

A target is a position that carries loss: all-position trainers have one for each item, prefix
trainers one for each sample, BERT4Rec one for each masked item. Sizes and dropout rates are equal;
batches are each side's own. What differs:

- RecTools has no inner size: its feed-forward is as wide as its item vectors, and so is ours there.
- Attention dropout is off wherever the peer can switch it off; RecTools cannot.
- RecBole ranks without a mask for seen items, the others with one.
- gSASRec-pytorch draws negatives for each position, seqtune for each row, and validates on 512
  users, which is what is timed.
- LightSANs keeps pads out of its attention, RecBole's counts them in, and is as long as it can be.
- BSARec is not in RecBole: it is compared with the SASRec there, at the same sizes.

With ``--epochs N`` each side trains N whole epochs and the metrics count, not the time. Results are
written to ``--out`` after each run; a call with the same file goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "platform"))
RUNNERS = Path(__file__).parent / "peers"
MARKS = ("<!-- peers -->", "<!-- /peers -->")
SIDES = ("peer", "seqtune")
Run = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """Another library: its name, the package that says its version, and what pip is asked for."""

    name: str
    package: str
    requirements: tuple[str, ...]


PEERS = {
    "recbole": Peer("RecBole", "recbole", ("recbole==1.2.1", "torch==2.13.0", "setuptools<81")),
    "rectools": Peer("RecTools", "RecTools", ("rectools[torch]==0.19.0", "torch==2.13.0")),
    "gsasrec": Peer(
        "gSASRec-pytorch", "ir-measures", ("ir_measures==0.4.3", "torch==2.13.0", "numpy", "tqdm")
    ),
}


@dataclass(frozen=True)
class Case:
    """One comparison: a model of a peer and one of ours on a data set, with their settings."""

    name: str
    data: str
    peer: str
    peer_model: str
    peer_set: tuple[str, ...]
    model: str
    set: tuple[str, ...]


def sasrec(data: str, length: int) -> list[Case]:
    """SASRec with cross entropy against two peers.

    RecBole trains on every event, hence our windows follow one another there; RecTools on the last
    window of each user, as we do by default.
    """
    ours = (f"max_seq_len={length}", "embedding_size=64", "n_layers=2", "n_heads=2")
    ours += ("dropout_prob=0.2", "attn_dropout_prob=0")
    recbole = ("hidden_size=64", "n_layers=2", "n_heads=2", "inner_size=256")
    recbole += ("hidden_dropout_prob=0.2", "attn_dropout_prob=0.0", "loss_type=CE")
    rectools = ("n_factors=64", "n_blocks=2", "n_heads=2", "dropout_rate=0.2", "loss=softmax")
    rectools += ("batch_size=128", "lr=1e-3")
    return [
        Case(
            name=f"sasrec-{data}-recbole",
            data=data,
            peer="recbole",
            peer_model="SASRec",
            peer_set=(f"MAX_ITEM_LIST_LENGTH={length}", *recbole),
            model="sasrec",
            set=(*ours, "inner_size=256", f"window_stride={length}"),
        ),
        Case(
            name=f"sasrec-{data}-rectools",
            data=data,
            peer="rectools",
            peer_model="SASRecModel",
            peer_set=(f"session_max_len={length}", *rectools),
            model="sasrec",
            set=(*ours, "inner_size=64"),
        ),
    ]


def ml_100k(model: str, peer_model: str, peer_set: str, ours: str) -> Case:
    """A model at the sizes and rates of RecBole's configuration, on ml-100k with 50 items."""
    return Case(
        name=f"{model}-ml-100k",
        data="ml-100k",
        peer="recbole",
        peer_model=peer_model,
        peer_set=("MAX_ITEM_LIST_LENGTH=50", *peer_set.split()),
        model=model,
        set=("max_seq_len=50", *ours.split()),
    )


BODY = "n_layers=2 n_heads=2 inner_size=256"
STRIDE = "window_stride=50"  # all events are trained, as in RecBole

CASES = [
    *sasrec("beauty", 50),
    *sasrec("ml-100k", 50),
    *sasrec("ml-1m", 200),
    ml_100k(
        "bert4rec",
        "BERT4Rec",
        f"hidden_size=64 {BODY} hidden_dropout_prob=0.2 attn_dropout_prob=0.0 mask_ratio=0.2",
        f"embedding_size=64 {BODY} dropout_prob=0.2 attn_dropout_prob=0 mask_prob=0.2 {STRIDE}"
        " last_mask_prob=0",  # RecBole's ft_ratio has no effect
    ),
    ml_100k(
        "gru4rec",
        "GRU4Rec",
        "embedding_size=64 hidden_size=128 num_layers=1 dropout_prob=0.3",
        f"embedding_size=64 hidden_size=128 num_layers=1 dropout_prob=0.3 {STRIDE}",
    ),
    ml_100k(
        "core",
        "CORE",
        f"embedding_size=64 {BODY} hidden_dropout_prob=0.5 attn_dropout_prob=0.0"
        " sess_dropout=0.2 item_dropout=0.2 temperature=0.07",
        f"embedding_size=64 {BODY} hidden_dropout_prob=0.5 attn_dropout_prob=0"
        f" session_dropout=0.2 item_dropout=0.2 temperature=0.07 {STRIDE}",
    ),
    ml_100k(
        "narm",
        "NARM",
        "embedding_size=64 hidden_size=128 n_layers=1 dropout_probs=[0.25,0.5]",
        "embedding_size=64 hidden_size=128 n_layers=1 hidden_dropout_prob=0.25"
        f" attn_dropout_prob=0.5 attn_norm=none {STRIDE}",
    ),
    ml_100k(
        "lightsans",
        "LightSANs",
        f"hidden_size=64 {BODY} k_interests=5 hidden_dropout_prob=0.5 attn_dropout_prob=0.0",
        f"embedding_size=64 {BODY} k_interests=5 dropout_prob=0.5 attn_dropout_prob=0",
    ),
    ml_100k(
        "caser",
        "Caser",
        "embedding_size=64 nh=8 nv=4 dropout_prob=0.4 loss_type=CE",
        "embedding_size=64 n_h=8 n_v=4 dropout_prob=0.4 loss_type=ce target_len=1 tie_weights=true",
    ),
    ml_100k(
        "bsarec",
        "SASRec",
        f"hidden_size=64 {BODY} hidden_dropout_prob=0.5 attn_dropout_prob=0.0",
        f"embedding_size=64 {BODY} dropout_prob=0.5 attn_dropout_prob=0",
    ),
    Case(
        name="gsasrec-ml-1m",
        data="ml-1m",
        peer="gsasrec",
        peer_model="config_ml1m",
        peer_set=(
            *("sequence_length=200", "embedding_dim=128", "num_blocks=2", "num_heads=1"),
            *("dropout_rate=0.0", "negs_per_pos=256", "gbce_t=0.75"),
        ),
        model="gsasrec",
        set=(
            *("max_seq_len=200", "embedding_size=128", "n_layers=2", "n_heads=1", "inner_size=128"),
            *("dropout_prob=0", "attn_dropout_prob=0", "neg_samples=256", "gbce_t=0.75"),
        ),
    ),
]


def main() -> None:
    asked = parsed()
    chosen = [case for case in CASES if any(fnmatch.fnmatch(case.name, p) for p in asked.case)]
    if not chosen:
        raise SystemExit(f"--case {' '.join(asked.case)}: no such case; --list shows them all")
    if asked.list:
        print("\n\n".join(described(case) for case in chosen))
        return
    if asked.data is None:
        raise SystemExit("--data: name the folder with the .parquet files")
    if asked.gsasrec is None and any(case.peer == "gsasrec" for case in chosen):
        chosen = [case for case in chosen if case.peer != "gsasrec"]
        print("gSASRec-pytorch is left out: --gsasrec CHECKOUT names a clone of its repository")
    failed = measure_all(asked, chosen)
    page = written(read(asked.out), command(asked))
    print(page)
    if asked.page is not None:
        asked.page.write_text(between_marks(asked.page.read_text(), page, str(asked.page)))
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the .parquet files")
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/seqtune-peers").expanduser())
    parser.add_argument("--gsasrec", type=Path, help="clone of asash/gSASRec-pytorch on GitHub")
    parser.add_argument("--case", nargs="+", default=["*"], help="names, with * and ?")
    parser.add_argument("--list", action="store_true", help="show the cases and stop")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training in each run")
    parser.add_argument("--epochs", type=int, help="compare metrics after so many epochs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    parser.add_argument("--page", type=Path, help="page with a block between the marks to rewrite")
    return parser.parse_args()


def described(case: Case) -> str:
    """Returns what a case compares, in three lines."""
    return (
        f"{case.name}: {case.data}\n"
        f"  {PEERS[case.peer].name} {case.peer_model}: {' '.join(case.peer_set)}\n"
        f"  seqtune {case.model}: {' '.join(case.set)}"
    )


def command(asked: argparse.Namespace) -> str:
    """Returns the command that measured this, with names for what is a matter of the machine."""
    words = ["python tests/benchmarks/peers.py --data FOLDER"]
    words += ["--gsasrec CHECKOUT"] if asked.gsasrec else []
    words += [] if asked.case == ["*"] else ["--case", *(f"'{case}'" for case in asked.case)]
    words += [f"--repeat {asked.repeat} --threads {asked.threads}"]
    words += [f"--epochs {asked.epochs}" if asked.epochs else f"--seconds {asked.seconds:g}"]
    return " ".join(words)


# Running


def measure_all(asked: argparse.Namespace, cases: list[Case]) -> list[str]:
    """Runs what the file of results does not have yet; returns what failed."""
    runs, failed = read(asked.out), []
    how = mode(asked)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            for repeat in range(asked.repeat):
                for side in SIDES:
                    key = {"case": case.name, "side": side, "repeat": repeat, "mode": how}
                    if has(runs, key):
                        continue
                    label = f"{case.name}, {side}, {repeat + 1} of {asked.repeat}"
                    print(label, end=": ", flush=True)
                    try:
                        found = measured(asked, case, side, Path(scratch))
                    except subprocess.CalledProcessError as error:
                        print(f"failed\n{error.stderr[-2000:]}")
                        failed.append(label)
                        continue
                    print(short(found), flush=True)
                    runs.append(key | about() | found)
                    save(asked.out, runs)
    return failed


def mode(asked: argparse.Namespace) -> str:
    """Says what is measured; runs of another mode are another matter."""
    if asked.epochs:
        return f"{asked.epochs} epochs"
    return f"{asked.seconds:g} s with {asked.threads} thread{'s' * (asked.threads > 1)}"


def measured(asked: argparse.Namespace, case: Case, side: str, scratch: Path) -> Run:
    """Runs one side of a case in a process of its own and returns what it prints."""
    sets = [w for one in (case.peer_set if side == "peer" else case.set) for w in ("--set", one)]
    length = ["--epochs", asked.epochs] if asked.epochs else ["--seconds", asked.seconds]
    words = [*sets, *length, "--threads", asked.threads]
    parquet = (asked.data / f"{case.data}.parquet").resolve()
    if side == "peer":
        words += ["--model", case.peer_model, "--data", as_csv(parquet, scratch)]
        words += ["--checkout", asked.gsasrec.resolve()] if case.peer == "gsasrec" else []
        start = [environment(asked.envs, case.peer), RUNNERS / f"run_{case.peer}.py"]
    else:
        words += ["--model", case.model, "--data", parquet]
        start = [sys.executable, RUNNERS / "run_seqtune.py"]
        if not asked.epochs:
            start, words = [sys.executable, "-m", "seqtune", "bench"], [*words, "--json"]
    threads = {name: str(asked.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    path = {"PYTHONPATH": str(ROOT / "platform") if side == "seqtune" else ""}
    done = subprocess.run(
        [str(word) for word in (*start, *words)],
        check=True,
        cwd=scratch,
        env=os.environ | threads | no_gpu | path,
        capture_output=True,
        text=True,
    )
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def as_csv(parquet: Path, scratch: Path) -> Path:
    """Writes a data set as text, in its order: the peers' environments cannot read parquet."""
    import pyarrow.csv
    import pyarrow.parquet

    csv = scratch / f"{parquet.stem}.csv"
    if not csv.exists():
        table = pyarrow.parquet.read_table(parquet, columns=["user_id", "item_id"])
        pyarrow.csv.write_csv(table, csv)
    return csv


def environment(envs: Path, name: str) -> Path:
    """Returns the Python of a peer's environment, which is made where it is absent."""
    peer, folder = PEERS[name], (envs / name).absolute()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    test = [python, "-c", f"import importlib.metadata as m; m.version('{peer.package}')"]
    if python.exists() and not subprocess.run(test, check=False, capture_output=True).returncode:
        return python
    print(f"making an environment for {peer.name} ...", end=" ", flush=True)
    for words in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "-q", *peer.requirements],
    ):
        subprocess.run(words, check=True, capture_output=True, text=True)
    return python


def about() -> Run:
    """Says where and when a run was made."""
    from seqtune.versions import git_commit

    return {
        "machine": machine(),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def machine() -> str:
    """Describes the processor: ``AMD EPYC, 2 cores, AVX2``."""
    import torch

    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        fields = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        model = next((value.strip() for key, value in fields if key.strip() == "model name"), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"


# Results


def read(path: Path) -> list[Run]:
    """Returns the runs of a file of results; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def save(path: Path, runs: list[Run]) -> None:
    """Writes the runs, at once: a crash leaves the old file or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(runs, indent=1) + "\n")
    new.replace(path)


def has(runs: list[Run], key: Run) -> bool:
    """Says whether a run is among the results."""
    return any(key.items() <= run.items() for run in runs)


def short(found: Run) -> str:
    """Returns the one number that a run is about."""
    if "test" in found:
        return f"test ndcg@10 {found['test']['ndcg@10']:.4f}"
    return f"{found['targets_per_second']:,.0f} targets/s"


@dataclass(frozen=True)
class Spread:
    """The median of the repeats of a number, and its extremes."""

    median: float
    least: float
    most: float


def spread(runs: list[Run], case: str, side: str, *names: str) -> Spread | None:
    """Returns the spread of a number (by its path of names) over the runs of one side of a case."""
    values = []
    for run in runs:
        if run["case"] == case and run["side"] == side:
            value: Any = run
            for name in names:
                value = value[name]
            values.append(value)
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def ratio(ours: Spread | None, peer: Spread | None) -> float | None:
    """Returns how many times the peer's median ours is."""
    return None if ours is None or peer is None else ours.median / peer.median


def written(runs: list[Run], command: str) -> str:
    """Returns the results as Markdown: tables of what there is, and how they were made."""
    parts = []
    for how in sorted({run["mode"] for run in runs}):
        some = [run for run in runs if run["mode"] == how]
        parts.append(quality_table(some, how) if how.endswith("epochs") else speed_table(some, how))
    return "\n\n".join([*parts, *footer(runs, command)])


def speed_table(runs: list[Run], how: str) -> str:
    """Returns speeds and memory, a line for each case."""
    head = "case | peer | targets/s: peer | seqtune | times | evaluation, users/s: peer | seqtune"
    lines = [f"| {head} | times | MB: peer | seqtune |", "|" + "---|" * 10]
    for case in (case for case in CASES if any(run["case"] == case.name for run in runs)):
        cells = [case.name, PEERS[case.peer].name]
        for number in ("targets_per_second", "eval_users_per_second"):
            peer, ours = (spread(runs, case.name, side, number) for side in SIDES)
            times = ratio(ours, peer)
            cells += [cell(peer), cell(ours), "-" if times is None else f"{times:.3g}"]
        memory = (spread(runs, case.name, side, "peak_rss_mb") for side in SIDES)
        cells += ["-" if one is None else f"{one.median:,.0f}" for one in memory]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Medians, least to most in brackets, of runs of {how}, in which the peer and seqtune take "
        "turns. Targets are positions that carry loss; evaluation is full ranking; MB is the peak "
        "of the process."
    )
    return "\n".join([*lines, "", note])


def quality_table(runs: list[Run], how: str) -> str:
    """Returns metrics after equal epochs, a line for each case."""
    head = f"case, after {how} | peer | validation NDCG@10: peer | seqtune | test NDCG@10: peer"
    lines = [f"| {head} | seqtune | test HR@10: peer | seqtune |", "|" + "---|" * 8]
    for case in (case for case in CASES if any(run["case"] == case.name for run in runs)):
        cells = [case.name, PEERS[case.peer].name]
        for part, metric in (("valid", "ndcg@10"), ("test", "ndcg@10"), ("test", "hr@10")):
            for side in SIDES:
                one = spread(runs, case.name, side, part, metric)
                cells.append("-" if one is None else f"{one.median:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Leave-one-out, full ranking, seen items masked on both sides."])


def cell(one: Spread | None) -> str:
    if one is None:
        return "-"
    return f"{one.median:,.0f} ({one.least:,.0f} to {one.most:,.0f})"


def footer(runs: list[Run], command: str) -> list[str]:
    """Says where, when and with what the runs were made, and by which command."""

    def all_of(name: str) -> str:
        return "; ".join(sorted({run[name] for run in runs}))

    versions = {
        f"{name} {version}"
        for run in runs
        if run["side"] == "peer"
        for name, version in run["versions"].items()
    }
    made = f"{all_of('machine')}. seqtune at commit {all_of('commit')}, {all_of('date')}."
    peers = f"The peers: {', '.join(sorted(versions, key=str.lower))}."
    return [f"{made} {peers}", f"```bash\n{command}\n```"]


def between_marks(text: str, block: str, place: str) -> str:
    """Returns the text of a page with its block between the marks replaced."""
    start, end = (text.find(mark) for mark in MARKS)
    if not 0 <= start < end:
        raise SystemExit(f"{place}: has no block to rewrite; write {MARKS[0]} and {MARKS[1]} in it")
    return f"{text[: start + len(MARKS[0])]}\n\n{block}\n\n{text[end:]}"


if __name__ == "__main__":
    main()
