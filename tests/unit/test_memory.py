"""What a training takes of memory, said before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqtune import machines
from seqtune.catalogue import declaration, model_names
from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.errors import UserError
from seqtune.machines import Card
from seqtune.memory import Need, check_fits, first_users, need, size, weights_of
from seqtune.model import model_class
from seqtune.options import StudyOptions, TrainOptions
from seqtune.params import Params
from seqtune.space.asked import ask_study, ask_training
from seqtune.storage import Folder
from seqtune.study import once, resources, study
from seqtune.study.cards import CONTEXT, MOST, Sharing, share_cards, with_share
from seqtune.study.plan import Plan, trial_params
from seqtune.study.trial import shared_card_full

TINY = make_preset("tiny")
PROTOCOL = Protocol.of(TINY)
TRAINED = [name for name in model_names() if declaration(name).is_trained]
GB = 1e9


def needs(model: str = "sasrec", **values: object) -> Need:
    few = {"neg_samples": 8} if model == "gsasrec" else {}  # as a study has it on 60 items
    return need(model, trial_params(model, few | values), TINY, PROTOCOL, "cuda")


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_counted_without_making_them(name: str) -> None:
    params, kind = trial_params(name, {}), model_class(name)
    made = kind(params, TINY.n_items, TINY.n_users)
    n = sum(weight.numel() for weight in made.parameters())
    assert weights_of(kind, params, TINY.n_items, TINY.n_users) == n
    assert needs(name).bare >= 3 * 4 * n


@pytest.mark.parametrize("name", TRAINED)
def test_a_larger_batch_and_wider_states_take_more(name: str) -> None:
    usual = needs(name)
    assert usual.batch > 0
    assert needs(name, batch_size=2 * trial_params(name, {}).batch_size).batch > usual.batch  # type: ignore[attr-defined]
    width = 2 * trial_params(name, {}).embedding_size  # type: ignore[attr-defined]
    assert needs(name, embedding_size=width).weights > usual.weights


def test_the_estimate_is_what_autograd_keeps() -> None:
    """On the CPU: the memory between the forward and the backward pass, by torch's own count."""
    from torch.profiler import ProfilerActivity, profile

    from seqtune import batches
    from seqtune.params import training

    values = {"max_seq_len": 50, "batch_size": 64, "loss_type": "bce"}
    params: Params = trial_params("sasrec", values)
    p, split = training(params), PROTOCOL.split(TINY)
    data = batches.sequences(split, torch.device("cpu"))
    model = model_class("sasrec")(params, TINY.n_items, TINY.n_users)
    model.prepare(data)
    windows = batches.windows(split, p)
    longest = (windows.start - windows.end).argsort(kind="stable")[:64]
    batch = batches.gather(windows, longest, data)
    rng = torch.Generator().manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        terms = model(batch, rng)
    kept = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert terms
    found = needs("sasrec", **values)
    assert 0.5 < (found.batch - needs_logits()) / kept < 2


def needs_logits() -> int:
    from seqtune.losses import logits_bytes

    return logits_bytes(TINY.n_items, torch.device("cuda"))


def test_some_users_stand_for_all() -> None:
    some = first_users(TINY)
    assert (some.n_users, some.n_interactions) == (TINY.n_users, TINY.n_interactions)
    assert sorted(set(some.items.tolist())) == list(range(1, some.n_items + 1))


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    params = trial_params("sasrec", {"embedding_size": 256})
    check_fits("sasrec", params, TINY, 1e9, "this machine")
    with pytest.raises(UserError) as refused:
        check_fits("sasrec", params, TINY, 3e6, "this machine")
    sentence = str(refused.value)
    assert sentence.startswith("sasrec with embedding_size 256 takes at least ")
    assert "60 items and 200 users" in sentence
    assert "this machine has 3 MB; --set embedding_size=64 would fit" in sentence
    smaller = trial_params("sasrec", {"embedding_size": 64})
    check_fits("sasrec", smaller, TINY, 3e6, "this machine")
    with pytest.raises(UserError, match="leave rare items and users out"):
        check_fits("sasrec", params, TINY, 100, "this machine")


def test_sizes_are_said_in_usual_units() -> None:
    assert [size(n) for n in (5e5, 8.8e8, 1.25e9, 8e10)] == ["0 MB", "880 MB", "1.2 GB", "80.0 GB"]


# How trials share a card.


def sharing(taken: float, cpus: float = 16, most: int = 99, card: float = 80 * GB) -> Sharing:
    return Sharing(Card("H100", card, 9.0, mps=False), taken, cpus, most)


@pytest.mark.parametrize(
    ("taken", "cpus", "most", "card", "trials"),
    [
        (1 * GB, 16, 99, 80 * GB, MOST),
        (1 * GB, 4, 99, 80 * GB, 4),  # each needs a CPU
        (1 * GB, 16, 2, 80 * GB, 2),  # there are no more trials
        (17 * GB, 16, 99, 80 * GB, 4),
        (1 * GB, 16, 99, 4 * GB, 2),
        (70 * GB, 16, 99, 80 * GB, 1),
        (500 * GB, 16, 99, 80 * GB, 1),
        (1 * GB, 0.5, 99, 80 * GB, 1),
    ],
)
def test_as_many_trials_share_a_card_as_fit(
    taken: float, cpus: float, most: int, card: float, trials: int
) -> None:
    found = sharing(taken, cpus, most, card)
    assert found.trials == trials
    assert found.share["GPU"] * trials <= 1
    assert found.share["GPU"] * (trials + 1) > 1 - 1e-3 * trials
    assert found.share["CPU"] >= 1 or cpus < 1


def test_the_first_trial_corrects_the_estimate_once() -> None:
    shared = sharing(20 * GB)
    assert shared.trials == 3
    assert (
        shared.seen(1 * GB)
        == "the first trial took 1.0 GB of its GPU: 8 trials share a GPU from now on"
    )
    assert shared.share == {"CPU": 2, "GPU": 0.125}
    assert shared.seen(70 * GB) == ""
    assert shared.trials == 8
    assert sharing(20 * GB).seen(20 * GB) == ""


def test_a_card_that_was_full_has_half_as_many() -> None:
    shared = sharing(1 * GB)
    assert shared.fewer() == "4 trials share a GPU from now on"
    assert shared.seen(1 * GB) == ""  # what the first took is no measure any more
    for _ in range(3):
        said = shared.fewer()
    assert said == "a trial has a GPU from now on"
    assert shared.share["GPU"] == 1


def test_a_context_counts_too() -> None:
    assert sharing(10 * GB, card=(10 * GB + CONTEXT) * 3 / 0.9 + 1).trials == 3


@pytest.mark.parametrize(
    ("gpus", "own", "again"),
    [(0.25, 10e9, True), (0.25, 70e9, False), (1, 10e9, False), (0, 10e9, False)],
)
def test_a_gpu_that_others_fill_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, gpus: float, own: float, again: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: own)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80e9))
    plan = Plan("sasrec", "hr@5", PROTOCOL, Folder.at("/nowhere"), gpus=gpus)
    assert shared_card_full(plan, torch.cuda.OutOfMemoryError("CUDA out of memory")) == again
    assert not shared_card_full(plan, MemoryError())


def test_nvidias_driver_says_what_a_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert machines._cards() == []  # no driver
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho '1000, 7.5, A'\necho '[N/A], 9.0, broken'\necho '500, 9.0, B 2'\n"
    )
    driver.chmod(0o755)
    assert machines._cards() == [
        Card("A", 1000 * 2**20, 7.5, True),
        Card("B 2", 500 * 2**20, 9.0, True),
    ]
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert machines._cards() == []


@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_catalogue_that_this_machine_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("seqtune.study.resources.memory_here", lambda: 200_000.0)
    options = {"data": "tiny", "storage": str(tmp_path / "results")}
    view: Any = SimpleNamespace(preparing=print)
    runs: dict[str, Any] = {
        "train": lambda: once.train_once(ask_training(TrainOptions("sasrec", **options)), view),  # type: ignore[arg-type]
        "tune": lambda: study.run(ask_study(StudyOptions("sasrec", **options)), view),  # type: ignore[arg-type]
    }
    said = r"this machine has 0 MB; --set embedding_size=\d+ would fit"
    with pytest.raises(UserError, match=said):
        runs[command]()
    assert not (tmp_path / "results").exists()


def test_a_start_point_that_this_machine_cannot_hold_has_the_sizes_of_trial_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = ask_study(StudyOptions("sasrec", data="tiny")).space
    space = replace(space, portfolio=({"embedding_size": 128, "dropout_prob": 0.1}, {"n_heads": 1}))
    assert resources.bearable(space, TINY).portfolio == space.portfolio

    def check(model: str, values: dict[str, Any], dataset: Dataset) -> None:
        if values["embedding_size"] > 64:
            raise UserError("too large")

    monkeypatch.setattr(resources, "check_memory", check)
    small = {"embedding_size": 64, "dropout_prob": 0.1}
    assert resources.bearable(space, TINY).portfolio == (small, {"n_heads": 1})


def test_cards_are_shared_unless_the_user_says_what_a_trial_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h100 = Card("H100", 80e9, 9.0, mps=False)
    monkeypatch.setattr("seqtune.study.cards.cards", lambda: [h100, Card("A10", 24e9, 8.6, True)])
    joined: Any = SimpleNamespace(machines=[machines.Machine(16, 2)])
    plan = Plan("sasrec", "hr@5", PROTOCOL, Folder.at("/x"), cpus=8, gpus=1, concurrency=2)

    def share(plan: Plan, **options: Any) -> tuple[Plan, list[str]]:
        said: list[str] = []
        asked = ask_study(StudyOptions("sasrec", data="tiny", **options))
        found = share_cards(asked, plan, joined, TINY, said.append)
        return with_share(plan, found, options.get("concurrency")), said

    shared, said = share(plan)
    assert (shared.cpus, shared.gpus, shared.concurrency) == (1, 0.125, 16)
    assert said[0].startswith("A10, 24.0 GB: a trial takes about ")  # the smaller one decides
    assert said[0].endswith("; 8 trials share a GPU")
    assert "tf32" in said[1]
    assert len(said) == 2, "MPS runs there"
    assert share(plan, concurrency=4)[0].concurrency == 4
    for given in ({"cpus_per_trial": 8.0}, {"gpus_per_trial": 1.0}):
        assert share(plan, **given) == (plan, [])
    for other in (replace(plan, gpus=0), replace(plan, workers=2)):
        assert share(other) == (other, [])
