"""What every model must do, checked for every file in ``seqtune/models``.

A new model needs no edit here; one that was published gets its parameter count in ``COUNTS``.
Choices (fields that are a ``Literal`` or a bool) are found by reflection and tried one at a time in
every train mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from seqtune import checkpoint, params, paramsfile
from seqtune.errors import UserError
from seqtune.model import Batch, Encoder, History, Model, Sequences, Term, model_class
from seqtune.params import OnPrefixes, Params, Trained, training
from seqtune.storage import Folder

NAMES = params.model_names()
N_USERS, N_ITEMS, WIDTH = 60, 20, 8

# Values that make a model small, for whichever of these fields it has.
SMALL: dict[str, object] = {
    "embedding_size": 16,
    "hidden_size": 16,
    "inner_size": 32,
    "n_heads": 2,
    "max_seq_len": WIDTH,
    "neg_samples": 3,
    "n_h": 4,
    "target_len": 1,
    "k_interests": 3,
}


# Parameter counts.


def trm(d: int, f: int) -> int:
    """A post-norm Transformer block with biases."""
    return 4 * (d * d + d) + 4 * d + 2 * d * f + f + d


def recbole(v: int, length: int, d: int, n: int, f: int) -> int:
    """RecBole's SASRec: tables, normalised embeddings, blocks."""
    return v * d + length * d + 2 * d + n * trm(d, f)


D64: dict[str, object] = {
    "embedding_size": 64,
    "inner_size": 256,
    "n_layers": 2,
    "n_heads": 2,
    "max_seq_len": 50,
}
GRU: dict[str, object] = {"embedding_size": 64, "hidden_size": 128, "n_layers": 1}
OFFICIAL = 5 * (64 * 64 + 64) + 4 * 64  # a block of the official SASRec, inner_size = d
LIGR = (3 * 64**2 + 3 * 64) + (64**2 + 64) + 4 * 64 + 2 * (64**2 + 64) + 3 * 4 * 64**2
BEAUTY = 12_101  # items; the table has one row more

# Model -> hyperparameters, items, users, parameters. Numbers are those of the official logs where
# there are any, else of the published architecture.
COUNTS: dict[str, list[tuple[dict[str, object], int, int, int]]] = {
    "sasrec": [
        (D64, BEAUTY, 9, 877_824),
        (D64 | {"norm": "pre"}, BEAUTY, 9, 877_824),
        (D64 | {"tie_weights": False}, BEAUTY, 9, 877_824 + (BEAUTY + 1) * 64),
        (
            D64 | {"norm": "sasrec", "inner_size": 64},
            BEAUTY,
            9,
            (BEAUTY + 1) * 64 + 50 * 64 + 2 * 64 + 2 * OFFICIAL,
        ),
    ],
    "duorec": [(D64, BEAUTY, 9, 877_824)],
    "linrec": [(D64, BEAUTY, 9, 877_824)],
    "cl4srec": [(D64, BEAUTY, 9, 877_824 + 64)],
    "bsarec": [(D64, BEAUTY, 9, 878_208), (D64, 3646, 9, 337_088)],
    "bert4rec": [(D64, BEAUTY, 9, 894_278)],
    "lightsans": [(D64 | {"k_interests": 5}, BEAUTY, 9, 896_000)],
    "gsasrec": [
        (
            D64 | {"inner_size": 64, "tie_weights": reuse},
            3416,
            9,
            (2 - reuse) * 3417 * 64 + 50 * 64 + 2 * 64 + 2 * OFFICIAL,
        )
        for reuse in (True, False)
    ],
    "esasrec": [(D64, BEAUTY, 9, (BEAUTY + 1) * 64 + 50 * 64 + 2 * LIGR)],
    "core": [
        (D64 | {"dnn_type": "trm"}, 500, 9, recbole(501, 50, 64, 2, 256) + 64 + 1),
        (D64 | {"dnn_type": "ave"}, 500, 9, 501 * 64),
    ],
    "gru4rec": [
        (GRU, 1349, 9, 168_384),  # ML-100K
        (GRU | {"n_layers": 2}, 1349, 9, 168_384 + 6 * 128**2),
        (
            GRU | {"variant": "official", "train_mode": "sessions"},
            1349,
            9,
            1350 * 128 + 1350 + 6 * 128**2 + 6 * 128,
        ),
    ],
    "narm": [
        (
            {"embedding_size": 50, "hidden_size": 100, "n_layers": 1},
            500,
            9,
            501 * 50 + 3 * (50 * 100 + 100**2) + 3 * 100 + 2 * 100**2 + 100 + 50 * 200,
        )
    ],
    "caser": [
        (
            {"embedding_size": 50, "max_seq_len": 5, "n_h": 16, "n_v": 4},
            500,
            70,
            sum(
                [
                    (70 + 501) * 50,  # users and items
                    4 * 5 + 4,  # vertical filters
                    sum(16 * height * 50 + 16 for height in range(1, 6)),  # horizontal ones
                    (4 * 50 + 16 * 5) * 50 + 50,  # to a state
                    501 * 100 + 501,  # to scores
                ]
            ),
        )
    ],
    "fossil": [
        ({"embedding_size": 16, "order_len": 3}, 500, 70, 2 * 501 * 16 + 501 + 3 + 70 * 3),
    ],
    "stan": [({}, 500, 70, 0)],
}


# Models and data to try them on.

# Choices that are no model's own: of the optimizer, of how to sample, and the mode.
OTHERS = set(Trained.model_fields) - {"loss_type"}


def fields(name: str) -> dict[str, Any]:
    return params.declaration(name).params.model_fields


def options(name: str, field: str) -> tuple[object, ...]:
    """The values of a field that is a choice, else none."""
    annotation = fields(name)[field].annotation if field in fields(name) else None
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def choices(name: str) -> Iterator[dict[str, object]]:
    """Each train mode as it is, and with every other choice of the model, one at a time."""
    modes = options(name, "train_mode") or (None,)
    own = [f for f in fields(name) if f not in OTHERS]
    others = [
        {field: value}
        for field in own
        for value in options(name, field)
        if value != fields(name)[field].default
    ]
    for mode in modes:
        start: dict[str, object] = {} if mode is None else {"train_mode": mode}
        yield from (start | other for other in [{}, *others] if allowed(name, start | other))


def allowed(name: str, values: dict[str, object]) -> bool:
    """Tells whether choices agree: rows and a model that would leak do not."""
    try:
        params.build(model_class(name).Params, small(name, values), "test")
    except UserError:
        return False
    return True


def small(name: str, values: dict[str, object]) -> dict[str, object]:
    known = {key: value for key, value in SMALL.items() if key in fields(name)}
    if values.get("train_mode") == "sessions":  # the authors' GRU4Rec alone
        known["variant"] = "official"
    return known | values


def build(name: str, values: dict[str, object]) -> Params:
    try:
        return params.build(model_class(name).Params, small(name, values), "test")
    except UserError as rule:  # a choice and a way to sample that exclude each other
        pytest.skip(str(rule))


def make(name: str, data: Sequences, seed: int = 0, **values: object) -> Model:
    torch.manual_seed(seed)
    model = model_class(name)(build(name, values), N_ITEMS, N_USERS)
    model.prepare(data)
    return model


def label(name: str, choice: dict[str, object]) -> str:
    return "-".join([name, *(f"{key}={value}" for key, value in choice.items())])


def mode_of(name: str, choice: dict[str, object]) -> object:
    """The train mode; a model without the field trains on rows."""
    if "train_mode" not in fields(name):
        return "rows"
    return choice.get("train_mode", fields(name)["train_mode"].default)


CASES = [(name, choice) for name in NAMES for choice in choices(name)]
MODES = [(name, choice) for name, choice in CASES if set(choice) <= {"train_mode"}]
# Those that promise states at all positions, each dependent on the items up to there alone.
CAUSAL = [
    (name, choice)
    for name, choice in CASES
    if mode_of(name, choice) != "prefixes"
    and issubclass(model_class(name), Encoder)
    and model_class(name).encode is not Encoder.encode  # type: ignore[attr-defined]
]
SAMPLING = [
    (name, choice)
    for name, choice in CASES
    if set(choice) - {"train_mode"} == {"loss_type"} and choice["loss_type"] != "ce"
]


def over(cases: list[tuple[str, dict[str, object]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "choice"), cases, ids=[label(name, choice) for name, choice in cases]
    )


every_model = pytest.mark.parametrize("name", NAMES)
every_mode, every_case = over(MODES), over(CASES)


@pytest.fixture(scope="module")
def data() -> Sequences:
    """Each user walks the cycle 1, 2, .., 20, 1, ..; the last event of each is held out."""
    items, first, users, targets, times = [], [], [], [], []
    for user in range(N_USERS):
        start, length = len(items), 4 + user % 7
        for step in range(length):
            targets += [len(items)] if 0 < step < length - 1 else []
            times.append(86_400_000 * (user + step))
            items.append((7 * user + step) % N_ITEMS + 1)
            first.append(start)
            users.append(user)
    return Sequences(
        items=torch.tensor(items),
        first=torch.tensor(first),
        users=torch.tensor(users),
        targets=torch.tensor(targets),
        times=torch.tensor(times),
        n_items=N_ITEMS,
        n_users=N_USERS,
    )


def held_out(data: Sequences) -> Tensor:
    """The last event of each user."""
    return torch.tensor([int((data.users == user).nonzero().max()) for user in range(N_USERS)])


def histories(model: Model, data: Sequences, events: Tensor) -> History:
    """The histories before events, as wide as the longest."""
    longest = min(model.params.max_seq_len, int((events - data.first[events]).max()))
    return data.before(events, longest)


def batch_of(model: Model, data: Sequences, users: range = range(N_USERS)) -> Batch:
    """One batch with every training target of these users, in the model's train mode."""
    mask = (data.users[data.targets] >= users.start) & (data.users[data.targets] < users.stop)
    events = data.targets[mask]
    mode: str = training(model.params).train_mode
    if mode == "sessions":  # each event as if it began a session
        history, where = data.before(events, 1), torch.arange(len(events))
    elif mode == "prefixes":
        history = histories(model, data, events)
        where = torch.arange(len(events)) * history.items.shape[1] + history.lengths - 1
    else:
        last = torch.tensor([int(events[data.users[events] == user].max()) for user in users])
        history = histories(model, data, last)
        rows = (history.items > 0).nonzero()  # (N, 2)
        where = rows[:, 0] * history.items.shape[1] + rows[:, 1]
        events = (last - history.lengths + 1)[rows[:, 0]] + rows[:, 1]
    return Batch(
        users=history.users,
        items=history.items,
        lengths=history.lengths,
        times=history.times,
        where=where,
        targets=data.items[events],
        events=events,
        prefixes=mode == "prefixes",
        continues=torch.full_like(events, -1) if mode == "sessions" else None,
    )


def total(terms: dict[str, Term]) -> Tensor:
    return torch.stack([term.weight * term.total / term.count for term in terms.values()]).sum()


def train(model: Model, data: Sequences, steps: int, seed: int = 0) -> None:
    """Some steps on all users, in three batches."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-3)
    thirds = [batch_of(model, data, range(start, start + 20)) for start in (0, 20, 40)]
    model.train()
    for _, batch in zip(range(steps), itertools.cycle(thirds)):
        optimizer.zero_grad()
        total(model(batch, rng)).backward()
        optimizer.step()
    model.eval()


def skip_if_untrained(model: Model) -> None:
    if not list(model.parameters()):
        pytest.skip("has nothing to train")


def padded(history: History, width: int) -> History:
    extra = (0, width - history.items.shape[1])
    times = None if history.times is None else nn.functional.pad(history.times, extra)
    return History(history.users, nn.functional.pad(history.items, extra), history.lengths, times)


def rows_of(history: History, rows: slice, width: int) -> History:
    times = None if history.times is None else history.times[rows, :width]
    return History(history.users[rows], history.items[rows, :width], history.lengths[rows], times)


# The declaration.


@every_model
def test_declaration_is_what_the_class_declares(name: str) -> None:
    declared, real = params.declaration(name).params, model_class(name).Params
    assert declared.model_json_schema() == real.model_json_schema()
    assert list(declared.model_fields) == list(real.model_fields)
    rules = [set(p.__pydantic_decorators__.model_validators) for p in (declared, real)]
    assert rules[0] == rules[1]
    assert params.declaration(name).summary.endswith(".")


@every_model
def test_every_hyperparameter_is_described(name: str) -> None:
    for field, info in fields(name).items():
        assert info.description, field


@every_model
def test_heads_must_divide_the_size(name: str) -> None:
    if "n_heads" not in fields(name):
        pytest.skip("has no heads")
    with pytest.raises(UserError, match=r"--set: n_heads must divide embedding_size 48, not 5; 4"):
        params.build(model_class(name).Params, {"embedding_size": 48, "n_heads": 5}, "--set")


WARPREC = Path(__file__).parent / "warprec.yaml"
BLOCKS = {
    name.lower(): block for name, block in yaml.safe_load(WARPREC.read_text())["models"].items()
}


def test_warprec_has_blocks_of_our_models() -> None:
    assert len(BLOCKS) == 15
    assert set(NAMES) >= BLOCKS.keys()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_of_warprec_is_read_unchanged_and_trains(name: str, data: Sequences) -> None:
    kind = model_class(name)
    given = paramsfile.read(str(WARPREC), name, kind.Params)
    known = params.aliases(kind.Params)
    assert given.values.keys() == {known.get(key, key) for key in BLOCKS[name]}
    assert (given.notes, given.dimensions) == ((), ())
    built = params.build(kind.Params, paramsfile.point(given, {}), "test")
    assert built == kind.Params.model_validate(BLOCKS[name])
    torch.manual_seed(0)
    model = kind(built, N_ITEMS, N_USERS)
    model.prepare(data)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    if before:
        train(model, data, steps=2)
    assert all(w.isfinite().all() and not w.equal(before[n]) for n, w in model.named_parameters())
    scores = model.eval().score(histories(model, data, held_out(data)))
    assert scores[:, 1:].isfinite().all()


def test_our_models_have_a_parameter_count() -> None:
    assert len(COUNTS) == 15
    assert set(NAMES) >= COUNTS.keys()


@every_model
def test_parameter_count(name: str) -> None:
    if name not in COUNTS:
        pytest.skip("no count was published")
    for values, n_items, n_users, expected in COUNTS[name]:
        built = params.build(model_class(name).Params, values, "test")
        model = model_class(name)(built, n_items, n_users)
        assert sum(w.numel() for w in model.parameters() if w.requires_grad) == expected, values


# Scores.


@every_case
def test_score_covers_the_items_and_never_the_padding(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    scores = model.score(histories(model, data, held_out(data)))
    assert scores.shape == (N_USERS, N_ITEMS + 1)
    assert scores.dtype == torch.float32
    assert scores[:, 0].eq(-torch.inf).all()
    assert scores[:, 1:].isfinite().all()


@every_case
def test_padding_changes_nothing(name: str, choice: dict[str, object], data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data)[:3])  # 3 to 5 items
    scores = model.score(history)
    wider = model.score(padded(history, WIDTH))
    torch.testing.assert_close(wider, scores, rtol=1e-4, atol=1e-5)
    shortest = model.score(rows_of(history, slice(0, 1), 3))
    torch.testing.assert_close(shortest, scores[:1], rtol=1e-4, atol=1e-5)


@every_case
def test_rows_are_independent(name: str, choice: dict[str, object], data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data)[:7])
    scores = model.score(history)
    width = history.items.shape[1]
    for row in range(7):
        alone = model.score(rows_of(history, slice(row, row + 1), width))
        torch.testing.assert_close(alone[0], scores[row], rtol=1e-4, atol=1e-5)


@every_model
def test_strangers_and_empty_histories_get_scores(name: str, data: Sequences) -> None:
    model = make(name, data).eval()
    history = histories(model, data, held_out(data)[:2])
    stranger = History(
        torch.tensor([N_USERS, N_USERS + 5]), history.items, history.lengths, history.times
    )
    assert model.score(stranger)[:, 1:].isfinite().all()
    nothing = History(history.users, 0 * history.items, 0 * history.lengths, history.times)
    assert model.score(nothing)[:, 1:].isfinite().all()


@every_model
def test_state_dict_carries_the_model(name: str, data: Sequences) -> None:
    first, second = make(name, data).eval(), make(name, data, seed=1).eval()
    history = histories(first, data, held_out(data))
    if list(first.parameters()):
        assert not second.score(history).equal(first.score(history))
    second.load_state_dict(first.state_dict())
    assert second.score(history).equal(first.score(history))


@every_model
def test_a_checkpoint_recommends_what_the_trained_model_did(
    name: str, data: Sequences, tmp_path: Path
) -> None:
    model = make(name, data)
    if list(model.parameters()):
        train(model, data, steps=3)
    checkpoint.save(
        Folder.at(tmp_path),
        model=name,
        params=model.params,
        state=model.state_dict(),
        n_users=N_USERS,
        item_ids=np.arange(1, N_ITEMS + 1),
        popularity=np.ones(N_ITEMS, np.int64),
        mask_seen=True,
        meta={},
    )
    loaded = checkpoint.load(Folder.at(tmp_path)).model
    for part in loaded.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx == 0:
            assert not part.weight[0].any()
    history = histories(model, data, held_out(data))
    before, after = (m.eval().score(history).topk(10) for m in (model, loaded))
    assert after.indices.equal(before.indices)
    assert after.values.equal(before.values)


@every_model
def test_rows_are_refused_where_they_would_leak(name: str) -> None:
    rows = {"train_mode": "rows"}
    if issubclass(model_class(name).Params, OnPrefixes):
        with pytest.raises(UserError, match=r"train_mode must be 'prefixes', .* would leak"):
            params.build(model_class(name).Params, rows, "test")


# States at all positions.


@over(CAUSAL)
def test_the_future_does_not_leak(name: str, choice: dict[str, object], data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    assert isinstance(model, Encoder)
    history = rows_of(histories(model, data, held_out(data)), slice(6, 7), WIDTH)
    assert int(history.lengths) == WIDTH
    states = model.encode(history)
    for t in range(WIDTH - 1):
        items = history.items.clone()
        items[:, t + 1 :] = (items[:, t + 1 :] + 4) % N_ITEMS + 1
        changed = model.encode(replace(history, items=items))
        assert changed[:, : t + 1].equal(states[:, : t + 1])  # bit for bit
        assert not changed[:, t + 1].equal(states[:, t + 1])


@over(CAUSAL)
def test_a_state_is_the_last_state_of_its_prefix(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    assert isinstance(model, Encoder)
    history = rows_of(histories(model, data, held_out(data)), slice(3, 7), WIDTH)
    states = model.encode(history)
    # Counted from the newest item, positions of a prefix are others than in the longer row.
    from_newest = getattr(model.params, "pos", "abs") == "rev"
    for row, length in enumerate(history.lengths.tolist()):
        for t in range(length - 1 if from_newest else 0, length):
            prefix = rows_of(history, slice(row, row + 1), t + 1)
            items = prefix.items.clone()
            items[:, t + 1 :] = 0
            prefix = replace(prefix, items=items, lengths=torch.tensor([t + 1]))
            last = model.encode_last(prefix)[0]
            torch.testing.assert_close(last, states[row, t], rtol=1e-4, atol=1e-5)


# Losses.


@every_case
def test_loss_is_finite_and_reaches_every_parameter(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    model = make(name, data, **choice)
    skip_if_untrained(model)
    batch = batch_of(model, data)
    if batch.continues is not None:  # the second step, since the first starts from nothing
        model(batch, torch.Generator())
        batch = replace(batch, continues=torch.arange(len(batch.continues)))
    terms = model(batch, torch.Generator().manual_seed(0))
    for term in terms.values():
        assert term.total.shape == ()
        assert term.total.dtype == torch.float32
        assert isinstance(term.count, int)
        assert term.count > 0
    loss = total(terms)
    assert loss.isfinite()
    loss.backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key
        no_effect = (name, key) == ("core", "weight.bias")  # published, but a softmax ignores it
        assert weight.grad.any() or no_effect, key


@over(SAMPLING)
@pytest.mark.parametrize("sharing", ["position", "row", "batch"])
@pytest.mark.parametrize("reject", ["none", "target", "seen"])
def test_every_way_to_sample(
    name: str, choice: dict[str, object], sharing: str, reject: str, data: Sequences
) -> None:
    model = make(name, data, **choice, neg_sharing=sharing, reject=reject)
    loss = total(model(batch_of(model, data), torch.Generator().manual_seed(0)))
    assert loss.isfinite()
    assert loss > 0


@every_mode
def test_padding_rows_stay_zero(name: str, choice: dict[str, object], data: Sequences) -> None:
    model = make(name, data, **choice, reg_weight=1e-3)
    skip_if_untrained(model)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx == 0]
    assert tables
    assert all(not table.weight[0].any() for table in tables)
    before = [table.weight.detach().clone() for table in tables]
    train(model, data, steps=10)
    for table, old in zip(tables, before, strict=True):
        assert not table.weight[0].any()
        assert not table.weight[1:].equal(old[1:])


@every_mode
def test_regularisation_is_a_term_of_its_own(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    model = make(name, data, **choice, reg_weight=0.01)
    skip_if_untrained(model)
    terms = model(batch_of(model, data), torch.Generator().manual_seed(0))
    assert terms["l2"].weight == 0.01
    assert terms["l2"].total > 0
    plain = make(name, data, **choice)
    assert set(terms) - {"l2"} == set(plain(batch_of(plain, data), torch.Generator()))


@every_mode
def test_one_row_of_one_item(name: str, choice: dict[str, object], data: Sequences) -> None:
    model = make(name, data, **choice)
    skip_if_untrained(model)
    event = data.targets[:1]  # the second event of a user
    history = data.before(event, 1)
    assert history.lengths.tolist() == [1]
    batch = Batch(
        users=history.users,
        items=history.items,
        lengths=history.lengths,
        times=history.times,
        where=torch.tensor([0]),
        targets=data.items[event],
        events=event,
        prefixes=training(model.params).train_mode == "prefixes",
    )
    loss = total(model(batch, torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.isfinite()
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())


@every_mode
def test_autocast_keeps_losses_and_scores_in_fp32(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data))
    exact = model.score(history)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.score(history)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, exact, rtol=0.1, atol=0.05)
        if list(model.parameters()):
            terms = model(batch_of(model, data), torch.Generator().manual_seed(0))
            assert {term.total.dtype for term in terms.values()} == {torch.float32}
            assert total(terms).isfinite()


@every_mode
def test_ranks_that_share_a_batch_find_the_gradient_of_the_whole(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    if choice.get("train_mode") == "sessions":
        pytest.skip("for one rank alone: what is sampled depends on the batch")
    certain: dict[str, object] = {field: 0.0 for field in fields(name) if "dropout" in field}
    certain |= {"mask_prob": 1.0, "last_mask_prob": 0.0, "loss_type": "ce"}
    certain = {field: value for field, value in certain.items() if field in fields(name)}
    model = make(name, data, **choice, **certain)
    skip_if_untrained(model)

    def gradient(*shards: range) -> Tensor:
        model.zero_grad()
        rng = torch.Generator().manual_seed(0)
        terms = [model(batch_of(model, data, users), rng)["ce"] for users in shards]
        count = sum(term.count for term in terms)
        torch.stack([term.total / count for term in terms]).sum().backward()
        return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])

    whole = gradient(range(N_USERS))
    shared = gradient(range(N_USERS // 4), range(N_USERS // 4, N_USERS))  # not the same counts
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-6)


# Learning.


@every_mode
def test_a_seed_gives_the_same_weights_bit_for_bit(
    name: str, choice: dict[str, object], data: Sequences
) -> None:
    models = [make(name, data, seed, **choice) for seed in (0, 0, 1)]
    skip_if_untrained(models[0])
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, data, steps=4, seed=seed)
    first, same, other = (torch.cat([w.flatten() for w in m.parameters()]) for m in models)
    assert first.equal(same)
    assert not first.equal(other)


def hits_after_training(
    name: str, choice: dict[str, object], data: Sequences, wanted: float
) -> float:
    """Trains until the share of held-out events that rank first is above ``wanted``, or for long.

    Items of the history stand aside where they are nearest to a mean of it (core), or were never a
    negative (caser, fossil).
    """
    little_dropout = {field: 0.1 for field in fields(name) if "dropout" in field}
    sizes = {"embedding_size": 32, "hidden_size": 32, "inner_size": 64}
    often = {"mask_prob": 0.3, "last_mask_prob": 0.5}  # bert4rec learns from what is masked
    given = {field: v for field, v in (sizes | often).items() if field in fields(name)}
    model = make(name, data, **choice, **little_dropout, **given)
    skip_if_untrained(model)
    events = held_out(data)
    hits = 0.0
    for seed in range(12):
        train(model, data, steps=25, seed=seed)
        history = histories(model, data, events)
        scores = model.score(history)
        if name in ("core", "caser", "fossil"):
            scores = scores.scatter(1, history.items, -torch.inf)
        hits = (scores.argmax(1) == data.items[events]).float().mean().item()
        if hits > wanted:
            break
    return hits


@every_mode
def test_the_cycle_is_learned(name: str, choice: dict[str, object], data: Sequences) -> None:
    wanted = {"fossil": 0.5, "caser": 0.5, "bert4rec": 0.7}.get(name, 0.95)
    assert hits_after_training(name, choice, data, wanted) > wanted


@pytest.mark.slow
@over([case for case in CASES if case not in MODES])
def test_every_choice_learns(name: str, choice: dict[str, object], data: Sequences) -> None:
    # Chance is .05. Averages are blind to order, and few positions of bert4rec carry a loss.
    wanted = 0.25 if name == "bert4rec" or choice.get("dnn_type") == "ave" else 0.5
    assert hits_after_training(name, choice, data, wanted) > wanted
