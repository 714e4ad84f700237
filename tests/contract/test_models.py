"""What every model must do, checked for every file in ``seqtune/models``.

A new model needs no edit here: where it is to do something else than all others, its ``contract``
says so. One that was published gets its parameter count in ``COUNTS``. Choices (fields that are a
``Literal`` or a bool) are found by reflection and tried one at a time in every train mode. What
fails is said in a sentence with the model, its hyperparameters, what was expected and what found.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from seqtune import catalogue, checkpoint, params
from seqtune import train as training_loop
from seqtune.data import Dataset, Split, leave_one_out
from seqtune.errors import UserError
from seqtune.model import (
    Batch,
    Encoder,
    History,
    Model,
    Sequences,
    Term,
    TransformerEncoder,
    model_class,
)
from seqtune.negatives import Negatives, Sampler
from seqtune.params import OnPrefixes, Params, Trained, training
from seqtune.space import warprec
from seqtune.storage import Folder

NAMES = catalogue.model_names()
N_USERS, N_ITEMS, WIDTH = 60, 20, 8

# Values that make a model small, for whichever of these fields it has; its contract may have more.
SMALL: dict[str, object] = {
    "embedding_size": 16,
    "hidden_size": 16,
    "inner_size": 32,
    "n_heads": 2,
    "max_seq_len": WIDTH,
    "neg_samples": 3,
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
    return catalogue.declaration(name).params.model_fields


def options(name: str, field: str) -> tuple[object, ...]:
    """The values of a field that is a choice, else none."""
    annotation = fields(name)[field].annotation if field in fields(name) else None
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


Choice = dict[str, object]


def starts(name: str) -> list[Choice]:
    """Each train mode, and the settings that the model's contract adds."""
    modes: list[Choice] = [{"train_mode": mode} for mode in options(name, "train_mode")] or [{}]
    return [*modes, *map(dict, model_class(name).contract.settings)]


def choices(name: str) -> Iterator[tuple[Choice, Choice]]:
    """Each of ``starts``, and with it every other choice of the model, one at a time."""
    others = [
        {field: value}
        for field in fields(name)
        if field not in OTHERS
        for value in options(name, field)
        if value != fields(name)[field].default
    ]
    for start in starts(name):
        new = ({}, *(other for other in others if not other.keys() & start.keys()))
        yield from ((start, other) for other in new if allowed(name, start | other))


def allowed(name: str, values: Choice) -> bool:
    """Tells whether choices agree: rows and a model that would leak do not."""
    try:
        params.build(model_class(name).Params, small(name, values), "test")
    except UserError:
        return False
    return True


def small(name: str, values: Choice) -> Choice:
    known = {key: value for key, value in SMALL.items() if key in fields(name)}
    return known | dict(model_class(name).contract.small) | values


def build(name: str, values: Choice) -> Params:
    try:
        return params.build(model_class(name).Params, small(name, values), "test")
    except UserError as rule:  # a choice and a way to sample that exclude each other
        pytest.skip(str(rule))


def make(name: str, data: Sequences, seed: int = 0, **values: object) -> Model:
    torch.manual_seed(seed)
    model = model_class(name)(build(name, values), N_ITEMS, N_USERS)
    model.prepare(data)
    return model


def label(name: str, choice: Choice) -> str:
    return "-".join([name, *(f"{key}={value}" for key, value in choice.items())])


def expect(holds: object, name: str, choice: Choice, sentence: str) -> None:
    """Fails with a sentence about the model, in place of a picture of its tensors."""
    if not holds:
        pytest.fail(f"{label(name, choice)}: {sentence}", pytrace=False)


def expect_close(
    found: Tensor,
    wanted: Tensor,
    name: str,
    choice: Choice,
    what: str,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Like ``torch.testing.assert_close``, but for what is said."""
    shapes = f"{what}: the shape is {tuple(found.shape)}, not {tuple(wanted.shape)}"
    expect(found.shape == wanted.shape, name, choice, shapes)
    far = found.isclose(wanted, rtol=rtol, atol=atol).logical_not()
    worst = float((found - wanted)[far].abs().max()) if far.any() else 0.0
    sentence = f"{what}: {int(far.sum())} of {far.numel()} numbers differ, by up to {worst:.3g}"
    expect(not far.any(), name, choice, sentence)


def expect_finite(found: Tensor, name: str, choice: Choice, what: str) -> None:
    bad = int(found.isfinite().logical_not().sum())
    expect(not bad, name, choice, f"{what}: {bad} of {found.numel()} numbers are not finite")


def mode_of(name: str, choice: Choice) -> str:
    """The train mode that a choice comes to."""
    return training(params.build(model_class(name).Params, small(name, choice), "test")).train_mode


STARTS = [(name, start) for name in NAMES for start in starts(name) if allowed(name, start)]
CASES = [(name, start | other) for name in NAMES for start, other in choices(name)]
# Those that promise states at all positions, each dependent on the items up to there alone.
CAUSAL = [
    (name, choice)
    for name, choice in CASES
    if mode_of(name, choice) != "prefixes"
    and issubclass(model_class(name), Encoder)
    and model_class(name).encode is not Encoder.encode  # type: ignore[attr-defined]
]
SAMPLING = [
    (name, start | other)
    for name in NAMES
    for start, other in choices(name)
    if other.keys() == {"loss_type"} and other["loss_type"] != "ce"
]


def over(cases: list[tuple[str, Choice]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "choice"), cases, ids=[label(name, choice) for name, choice in cases]
    )


every_model = pytest.mark.parametrize("name", NAMES)
every_mode, every_case = over(STARTS), over(CASES)


@pytest.fixture(scope="module")
def data() -> Sequences:
    """Each user walks the cycle 1, 2, .., 20, 1, ..; the last event of each is held out."""
    items, offsets, times = [], [0], []
    for user in range(N_USERS):
        length = 4 + user % 7
        for step in range(length):
            times.append(86_400_000 * (user + step))
            items.append((7 * user + step) % N_ITEMS + 1)
        offsets.append(len(items))
    return Sequences(
        items=torch.tensor(items),
        offsets=torch.tensor(offsets),
        train_end=torch.tensor(offsets[1:]) - 1,
        times=torch.tensor(times),
        n_items=N_ITEMS,
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
    mode: str = training(model.params).train_mode  # a model may have more than the usual two
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


def tables_of(model: Model) -> dict[str, nn.Embedding]:
    """The tables with a row of padding, by name."""
    parts = model.named_modules()
    return {n: m for n, m in parts if isinstance(m, nn.Embedding) and m.padding_idx == 0}


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
    declared, real = catalogue.declaration(name).params, model_class(name).Params
    assert declared.model_json_schema() == real.model_json_schema()
    assert list(declared.model_fields) == list(real.model_fields)
    rules = [set(p.__pydantic_decorators__.model_validators) for p in (declared, real)]
    assert rules[0] == rules[1]
    assert declared.sources == real.sources
    assert catalogue.declaration(name).summary.endswith(".")


@every_model
def test_every_description_is_a_sentence(name: str) -> None:
    for field, info in fields(name).items():
        told = info.description or ""
        is_sentence = re.fullmatch(r"[A-Z].*[^.]\.", told) and len(told.split()) >= 4
        wanted = "a sentence: a capital, four words or more, a period"
        expect(is_sentence, name, {}, f"the description of {field} is {told!r}, not {wanted}")


@every_model
def test_every_default_that_a_model_sets_says_where_it_comes_from(name: str) -> None:
    declared = catalogue.declaration(name).params
    own = {key for key in declared.__annotations__ if key in fields(name)}
    own -= {key for key in own if params.is_fixed(fields(name)[key])}  # its description says why
    listed = [field for names in declared.sources for field in names.split()]
    twice = {field for field in listed if listed.count(field) > 1}
    expect(not twice, name, {}, f"sources has {', '.join(sorted(twice))} more than once")
    missing, more = own - set(listed), set(listed) - own
    expect(not missing, name, {}, f"sources lacks {', '.join(sorted(missing))}")
    expect(not more, name, {}, f"sources has {', '.join(sorted(more))}, which Params does not set")
    for names, source in declared.sources.items():
        known = source in ("paper", "official") or re.fullmatch(r"ours: \S.{9,}", source)
        wanted = "paper, official, or ours: and why"
        expect(known, name, {}, f"the source of {names} is {source!r}, not {wanted}")


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
    given = warprec.read(str(WARPREC), name, kind.Params)
    known = params.aliases(kind.Params)
    assert given.values.keys() == {known.get(key, key) for key in BLOCKS[name]}
    assert (given.notes, given.dimensions) == ((), ())
    built = params.build(kind.Params, given.values, "test")
    assert built == kind.Params.model_validate(BLOCKS[name])
    torch.manual_seed(0)
    model = kind(built, N_ITEMS, N_USERS)
    model.prepare(data)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    if before:
        train(model, data, steps=2)
    for key, weight in model.named_parameters():
        expect_finite(weight, name, {}, f"after two steps, {key}")
        expect(not weight.equal(before[key]), name, {}, f"two steps leave {key} as it was")
    scores = model.eval().score(histories(model, data, held_out(data)))
    expect_finite(scores[:, 1:], name, {}, "after two steps, scores")


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
        found = sum(w.numel() for w in model.parameters() if w.requires_grad)
        expect(found == expected, name, values, f"{found:,} parameters, not {expected:,}")


# Scores.


@every_case
def test_score_covers_the_items_and_never_the_padding(
    name: str, choice: Choice, data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    scores = model.score(histories(model, data, held_out(data)))
    shape, wanted = tuple(scores.shape), (N_USERS, N_ITEMS + 1)
    expect(shape == wanted, name, choice, f"scores have the shape {shape}, not {wanted}")
    expect(scores.dtype == torch.float32, name, choice, f"scores are {scores.dtype}, not float32")
    expect(scores[:, 0].eq(-torch.inf).all(), name, choice, "padding has a score other than -inf")
    expect_finite(scores[:, 1:], name, choice, "scores of items")


@every_case
def test_padding_changes_nothing(name: str, choice: Choice, data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data)[:3])  # 3 to 5 items
    scores = model.score(history)
    wider = model.score(padded(history, WIDTH))
    expect_close(wider, scores, name, choice, "scores with more padding")
    shortest = model.score(rows_of(history, slice(0, 1), 3))
    expect_close(shortest, scores[:1], name, choice, "scores without padding")


@every_case
def test_rows_are_independent(name: str, choice: Choice, data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data)[:7])
    scores = model.score(history)
    width = history.items.shape[1]
    for row in range(7):
        alone = model.score(rows_of(history, slice(row, row + 1), width))
        expect_close(alone[0], scores[row], name, choice, f"scores of row {row} on its own")


@every_model
def test_strangers_and_empty_histories_get_scores(name: str, data: Sequences) -> None:
    model = make(name, data).eval()
    history = histories(model, data, held_out(data)[:2])
    stranger = replace(history, users=torch.tensor([N_USERS, N_USERS + 5]))
    expect_finite(model.score(stranger)[:, 1:], name, {}, "scores of strangers")
    nothing = replace(history, items=0 * history.items, lengths=0 * history.lengths)
    expect_finite(model.score(nothing)[:, 1:], name, {}, "scores of empty histories")


@every_model
def test_state_dict_carries_the_model(name: str, data: Sequences) -> None:
    first, second = make(name, data).eval(), make(name, data, seed=1).eval()
    history = histories(first, data, held_out(data))
    if list(first.parameters()):
        same = second.score(history).equal(first.score(history))
        expect(not same, name, {}, "another seed gives the same scores")
    second.load_state_dict(first.state_dict())
    same = second.score(history).equal(first.score(history))
    expect(same, name, {}, "a model with the state of another gives other scores")


@every_model
def test_a_checkpoint_recommends_what_the_trained_model_did(
    name: str, data: Sequences, tmp_path: Path
) -> None:
    model = make(name, data)
    if list(model.parameters()):
        train(model, data, steps=3)
    checkpoint.save(
        Folder.at(tmp_path),
        model.state_dict(),
        checkpoint.Card(
            model=name,
            params=model.params,
            n_users=N_USERS,
            item_ids=np.arange(1, N_ITEMS + 1),
            popularity=np.ones(N_ITEMS, np.int64),
            mask_seen=True,
        ),
    )
    loaded = checkpoint.load(Folder.at(tmp_path)).model
    for part, table in tables_of(loaded).items():
        expect(not table.weight[0].any(), name, {}, f"row 0 of {part} is not zero when loaded")
    history = histories(model, data, held_out(data))
    before, after = (m.eval().score(history).topk(10) for m in (model, loaded))
    expect(after.indices.equal(before.indices), name, {}, "a checkpoint ranks other items first")
    expect(after.values.equal(before.values), name, {}, "a checkpoint gives other scores")


@every_model
def test_rows_are_refused_where_they_would_leak(name: str) -> None:
    kind = model_class(name)
    states = issubclass(kind, Encoder) and kind.encode is not Encoder.encode
    if issubclass(kind.Params, OnPrefixes):
        with pytest.raises(UserError, match=r"train_mode must be 'prefixes', .* would leak"):
            params.build(kind.Params, {"train_mode": "rows"}, "test")
    elif issubclass(kind, Encoder) and not states:
        told = "has no state of each position, so train_mode may not be rows and prefixes"
        expect(options(name, "train_mode") == ("rows",), name, {}, told)


# States at all positions.


@over(CAUSAL)
def test_the_future_does_not_leak(name: str, choice: Choice, data: Sequences) -> None:
    model = make(name, data, **choice).eval()
    assert isinstance(model, Encoder)
    history = rows_of(histories(model, data, held_out(data)), slice(6, 7), WIDTH)
    assert int(history.lengths) == WIDTH
    states = model.encode(history)
    for t in range(WIDTH - 1):
        items = history.items.clone()
        items[:, t + 1 :] = (items[:, t + 1 :] + 4) % N_ITEMS + 1
        changed = model.encode(replace(history, items=items))
        same = changed[:, : t + 1].equal(states[:, : t + 1])  # bit for bit
        expect(same, name, choice, f"states up to position {t} see items after it")
        blind = changed[:, t + 1].equal(states[:, t + 1])
        expect(not blind, name, choice, f"the state at position {t + 1} does not see its own item")


@over(CAUSAL)
def test_a_state_is_the_last_state_of_its_prefix(
    name: str, choice: Choice, data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    assert isinstance(model, Encoder)
    history = rows_of(histories(model, data, held_out(data)), slice(3, 7), WIDTH)
    states = model.encode(history)
    # Counted from the newest item, positions of a prefix are others than in the longer row.
    from_newest = isinstance(model, TransformerEncoder) and model.body.position == "rev"
    for row, length in enumerate(history.lengths.tolist()):
        for t in range(length - 1 if from_newest else 0, length):
            prefix = rows_of(history, slice(row, row + 1), t + 1)
            items = prefix.items.clone()
            items[:, t + 1 :] = 0
            prefix = replace(prefix, items=items, lengths=torch.tensor([t + 1]))
            last = model.encode_last(prefix)[0]
            expect_close(last, states[row, t], name, choice, f"the last state of {t + 1} items")


# Losses.


@every_case
def test_loss_is_finite_and_reaches_every_parameter(
    name: str, choice: Choice, data: Sequences
) -> None:
    model = make(name, data, **choice)
    skip_if_untrained(model)
    batch = batch_of(model, data)
    if batch.continues is not None:  # the second step, since the first starts from nothing
        model(batch, torch.Generator())
        batch = replace(batch, continues=torch.arange(len(batch.continues)))
    terms = model(batch, torch.Generator().manual_seed(0))
    for key, term in terms.items():
        shape, kind = tuple(term.total.shape), term.total.dtype
        is_sum = shape == () and kind == torch.float32
        expect(is_sum, name, choice, f"term {key} is {kind} of shape {shape}, not one float32")
        is_count = isinstance(term.count, int) and term.count > 0
        told = f"term {key} counts {term.count}, not a whole number above 0"
        expect(is_count, name, choice, told)
    loss = total(terms)
    expect_finite(loss, name, choice, "the loss")
    loss.backward()
    for key, weight in model.named_parameters():
        gradient = weight.grad
        expect(gradient is not None, name, choice, f"{key} gets no gradient")
        assert gradient is not None
        expect_finite(gradient, name, choice, f"the gradient of {key}")
        reached = gradient.any() or key in model.contract.idle_weights
        expect(reached, name, choice, f"the gradient of {key} is zero everywhere")


def forbidden(reject: str, targets: Tensor, users: Tensor, data: Sequences) -> Tensor:
    """What must not be a negative of each target, by the data alone: (N,), (N,) -> (N, I + 1)."""
    no = torch.zeros(len(targets), N_ITEMS + 1, dtype=torch.bool)
    if reject == "target":
        no[torch.arange(len(no)), targets] = True
    if reject == "seen":
        trained = torch.cat([data.targets, data.first.unique()])
        for n, user in enumerate(users.tolist()):
            no[n, data.items[trained[data.users[trained] == user]]] = True
    return no


# Each model, with the first of its losses that sample.
SAMPLERS = [next(cases) for _, cases in itertools.groupby(SAMPLING, lambda case: case[0])]


@over(SAMPLERS)
@pytest.mark.parametrize("reject", ["none", "target", "seen"])
def test_negatives_are_drawn_as_the_hyperparameters_say(
    name: str,
    choice: dict[str, object],
    reject: str,
    data: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What must not be a negative is masked and weighs nothing; the others are uniform."""
    drawn: list[tuple[Tensor, Tensor, Tensor, Negatives]] = []
    draw, shift = Sampler.draw, [0, 0]  # to the items of masked negatives, and of the others

    def spy(
        self: Sampler, targets: Tensor, rows: Tensor, users: Tensor, *more: Any, **named: Any
    ) -> Negatives:
        found = draw(self, targets, rows, users, *more, **named)
        drawn.append((targets, rows, users[rows], found))
        if not any(shift):
            return found
        masked = torch.zeros_like(found.items, dtype=torch.bool)
        masked |= False if found.rejected is None else found.rejected
        step = torch.where(masked, *shift)
        return found._replace(items=(found.items - 1 + step) % N_ITEMS + 1)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return total(model(batch, torch.Generator().manual_seed(0)))

    monkeypatch.setattr(Sampler, "draw", spy)
    monkeypatch.setattr("seqtune.negatives.REDRAWS", 1)  # so that some are left to mask
    for sharing in ("batch", "row", "position"):
        values = choice | {"neg_sharing": sharing, "reject": reject, "neg_samples": 19}
        model = make(name, data, **values).eval()
        batch = batch_of(model, data)
        drawn.clear()
        before = loss()
        ((targets, rows, users, found),) = drawn
        items = found.items[rows] if found.sharing == "row" else found.items
        items = items.expand(len(targets), 19)
        no = forbidden(reject, targets, users, data)
        masked = no.gather(1, items)
        assert masked.equal(torch.zeros_like(masked) if found.rejected is None else found.rejected)

    allowed = ~no[:, 1:]
    expected = ((~masked).sum(1, keepdim=True) * allowed / allowed.sum(1, keepdim=True)).sum(0)
    counts = items[~masked].bincount(minlength=N_ITEMS + 1)[1:]
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    assert masked.any() == (reject != "none")
    assert masked.float().mean() <= 0.7 * no[:, 1:].float().mean()  # others were drawn again
    shift[:] = 1, 0
    assert loss().equal(before)
    shift[:] = 0, 1
    assert not loss().equal(before)


@every_mode
def test_padding_rows_stay_zero(name: str, choice: Choice, data: Sequences) -> None:
    if not issubclass(model_class(name).Params, Trained):
        pytest.skip("has nothing to train")
    model = make(name, data, **choice, reg_weight=1e-3)
    tables = tables_of(model)
    expect(tables, name, choice, "has no table with a row of padding")
    for part, table in tables.items():
        expect(not table.weight[0].any(), name, choice, f"row 0 of {part} is not zero at first")
    before = {part: table.weight.detach().clone() for part, table in tables.items()}
    train(model, data, steps=10)
    for part, table in tables.items():
        expect(not table.weight[0].any(), name, choice, f"training changes row 0 of {part}")
        same = table.weight[1:].equal(before[part][1:])
        expect(not same, name, choice, f"training leaves {part} as it was")


@every_mode
def test_regularisation_is_a_term_of_its_own(name: str, choice: Choice, data: Sequences) -> None:
    if not issubclass(model_class(name).Params, Trained):
        pytest.skip("has nothing to train")
    model = make(name, data, **choice, reg_weight=0.01)
    terms = model(batch_of(model, data), torch.Generator().manual_seed(0))
    plain = make(name, data, **choice)
    others = set(plain(batch_of(plain, data), torch.Generator()))
    wanted = f"terms are {', '.join(terms)}, not {', '.join(others)} and l2"
    expect(set(terms) == others | {"l2"}, name, choice, wanted)
    told = f"the weight of l2 is {terms['l2'].weight}, not reg_weight 0.01"
    expect(terms["l2"].weight == 0.01, name, choice, told)
    expect(terms["l2"].total > 0, name, choice, "l2 is not above 0")


@every_mode
def test_one_row_of_one_item(name: str, choice: Choice, data: Sequences) -> None:
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
    expect_finite(loss, name, choice, "the loss of one row of one item")
    for key, weight in model.named_parameters():
        if weight.grad is not None:
            expect_finite(weight.grad, name, choice, f"the gradient of {key}")


@every_mode
def test_autocast_keeps_losses_and_scores_in_fp32(
    name: str, choice: Choice, data: Sequences
) -> None:
    model = make(name, data, **choice).eval()
    history = histories(model, data, held_out(data))
    exact = model.score(history)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.score(history)
        told = f"scores are {scores.dtype}, not float32"
        expect(scores.dtype == torch.float32, name, choice, told)
        expect_close(scores, exact, name, choice, "scores under autocast", rtol=0.1, atol=0.05)
        if list(model.parameters()):
            terms = model(batch_of(model, data), torch.Generator().manual_seed(0))
            kinds = {term.total.dtype for term in terms.values()}
            expect(kinds == {torch.float32}, name, choice, f"losses are {kinds}, not float32")
            expect_finite(total(terms), name, choice, "the loss under autocast")


@every_mode
def test_ranks_that_share_a_batch_find_the_gradient_of_the_whole(
    name: str, choice: Choice, data: Sequences
) -> None:
    if choice.get("train_mode") == "sessions":
        pytest.skip("for one rank alone: what is sampled depends on the batch")
    certain: Choice = {field: 0.0 for field in fields(name) if "dropout" in field}
    certain |= {"loss_type": "ce"} if "loss_type" in fields(name) else {}
    model = make(name, data, **choice, **certain, **model_class(name).contract.certain)
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
    expect(whole.abs().max() > 1e-4, name, choice, "the gradient of the whole batch is nearly zero")
    expect_close(shared, whole, name, choice, "the gradient of two ranks", atol=1e-6)


# Hyperparameters.


@functools.cache
def cycles() -> Split:
    """Users that walk the cycle, as a data set; most histories are longer than the windows."""
    counts = np.array([4 + user % 7 for user in range(12)])
    walks = [(7 * user + np.arange(n)) % N_ITEMS + 1 for user, n in enumerate(counts)]
    items = np.concatenate(walks).astype(np.int32)
    return leave_one_out(
        Dataset(
            name="cycles",
            items=items,
            offsets=np.concatenate([[0], counts.cumsum()]),
            times=86_400_000 * np.arange(14_610, 14_610 + len(items)),  # from 2010 on
            user_ids=np.arange(len(counts)),
            item_ids=np.arange(1, N_ITEMS + 1),
        )
    )


SHORT: Choice = {
    "max_seq_len": 5,
    "epochs": 2,
    "eval_every": 1,
    "batch_size": 16,
    "warmup_steps": 0,
}
# What hyperparameters of training need beside them: no progress, and an optimizer without momentum.
BESIDE: dict[str, Choice] = {
    "patience": {"learning_rate": 1e-12, "epochs": 4},
    "momentum": {"optimizer": "adagrad", "epochs": 4},
}
CLOCK = ("time", "train_seconds", "eval_seconds")


@functools.cache
def outcome(name: str, given: tuple[tuple[str, object], ...]) -> tuple[object, ...] | None:
    """What a short training with these values comes to; None where they are refused.

    It is all that can differ: what is reported after each epoch, the weights and the ranks in the
    end, and how often a compiled function was called.
    """
    calls: list[int] = []

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(1)
            return function(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compiled)
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        try:
            built = params.build(model_class(name).Params, dict(given), "test")
            trained = training_loop.train(name, built, cycles())
        except UserError:
            return None
    told = [{k: v for k, v in row.items() if k not in CLOCK} for row in trained.history]
    weights = (w.detach().numpy().tobytes() for w in trained.model.parameters())
    return str(told), tuple(weights), trained.best["ranks"].tobytes(), len(calls)


def new_values(name: str, field: str, value: Any) -> list[object]:
    """Other values for a field, those first that are the most likely to change something."""
    if found := options(name, field):
        return [other for other in found if other != value]
    numbers: list[Any] = ["8", "8/4"]  # the one kind of text that is free: sizes of layers
    if isinstance(value, float):
        numbers = [0.3, value / 2, 1.0, 1e-3, 0.9]
    elif isinstance(value, int):
        numbers = [1, 2, value + 1, 2 * value, 3, 10]
    kind = model_class(name).Params
    fits = []
    for number in numbers:
        with contextlib.suppress(UserError):
            fits.append(params.check(kind, field, number, "test"))
    return [number for number in fits if number != value]


def kindred(field: str, choice: Choice) -> bool:
    """Tells whether a choice looks as if it had to do with a field: loss_type=gbce and gbce_t."""
    return any(
        str(value) in field or key.split("_")[0] == field.split("_")[0]
        for key, value in choice.items()
    )


# What every model has is changed in the default run for two of them, and for all in the slow one.
FIRST = ("gru4rec", "sasrec")
EFFECTS = [
    pytest.param(
        name,
        field,
        id=f"{name}-{field}",
        marks=[pytest.mark.slow] * (field in Trained.model_fields and name not in FIRST),
    )
    for name in NAMES
    for field, info in fields(name).items()
    if not params.is_fixed(info)
    and field != "gather_negatives"  # about several workers: tests/unit/test_train.py
    # Every run has a seed, also of what has no chance in it.
    and (field != "seed" or catalogue.declaration(name).is_trained)
]


@pytest.mark.parametrize(("name", "field"), EFFECTS)
def test_every_hyperparameter_changes_something(name: str, field: str) -> None:
    """By itself, or beside one other choice: what has no effect in a model is not declared."""
    known = fields(name)
    short = small(name, {key: value for key, value in SHORT.items() if key in known})
    offered = [choice for model, choice in CASES if model == name]
    offered.sort(key=lambda choice: "loss_type" not in choice)  # what most conditions are about,
    offered.sort(key=lambda choice: not kindred(field, choice))  # but for ssl_type and ssl_lambda
    beside: list[Choice] = [{}, BESIDE.get(field, {}), *offered]
    for choice in beside:
        if not choice.keys() <= known.keys():
            continue
        others = {key: value for key, value in choice.items() if key != field}
        before = outcome(name, tuple((short | others).items()))
        if before is None:  # these others are allowed together with the field alone
            before = outcome(name, tuple(short.items()))
        for value in new_values(name, field, short.get(field, known[field].default)):
            after = outcome(name, tuple((short | others | {field: value}).items()))
            if after is not None and after != before:
                return
    default = short.get(field, known[field].default)
    tried = ", ".join(map(str, new_values(name, field, default)))
    told = f"{field} changes nothing: {tried} in place of {default}, beside {len(beside)} choices"
    expect(False, name, {}, told)


# Learning.


@every_mode
def test_a_seed_gives_the_same_weights_bit_for_bit(
    name: str, choice: Choice, data: Sequences
) -> None:
    models = [make(name, data, seed, **choice) for seed in (0, 0, 1)]
    skip_if_untrained(models[0])
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, data, steps=4, seed=seed)
    first, same, other = (torch.cat([w.flatten() for w in m.parameters()]) for m in models)
    expect(first.equal(same), name, choice, "the same seed gives other weights")
    expect(not first.equal(other), name, choice, "another seed gives the same weights")


def hits_after_training(name: str, choice: Choice, data: Sequences, wanted: float) -> float:
    """Trains until a share above ``wanted`` of held-out events ranks first, or for long."""
    contract = model_class(name).contract
    little_dropout = {field: 0.1 for field in fields(name) if "dropout" in field}
    sizes = {"embedding_size": 32, "hidden_size": 32, "inner_size": 64}
    given = {field: v for field, v in sizes.items() if field in fields(name)}
    model = make(name, data, **choice, **little_dropout, **given, **contract.learning)
    skip_if_untrained(model)
    events = held_out(data)
    hits = 0.0
    for seed in range(12):
        train(model, data, steps=25, seed=seed)
        history = histories(model, data, events)
        scores = model.score(history)
        if contract.favours_history:
            scores = scores.scatter(1, history.items, -torch.inf)
        hits = (scores.argmax(1) == data.items[events]).float().mean().item()
        if hits > wanted:
            break
    return hits


def expect_learned(name: str, choice: Choice, data: Sequences, wanted: float) -> None:
    hits = hits_after_training(name, choice, data, wanted)
    told = f"after 300 steps, {hits:.0%} of the items that follow rank first, not {wanted:.0%}"
    expect(hits > wanted, name, choice, told)


@every_mode
def test_the_cycle_is_learned(name: str, choice: Choice, data: Sequences) -> None:
    expect_learned(name, choice, data, model_class(name).contract.learns)


@pytest.mark.slow
@over([case for case in CASES if case not in STARTS])
def test_every_choice_learns(name: str, choice: Choice, data: Sequences) -> None:
    contract = model_class(name).contract  # chance is .05
    special = [contract.learns_with.get(pair, 1.0) for pair in choice.items()]
    expect_learned(name, choice, data, min([contract.learns_anyhow, *special]))
