"""The weights of a checkpoint begin a model of another catalogue."""

from typing import Any

import numpy as np
import pytest
import torch

from seqtune import catalogue, warm
from seqtune.checkpoint import Recommender
from seqtune.model import Model, model_class

OLD = ["a", "b", "c", "d", "e", "f"]
NEW = ["x", "c", "a", "y", "f", "e", "b", "z"]  # d is gone
SMALL: dict[str, Any] = {"embedding_size": 8, "max_seq_len": 10, "seed": 3}
TRAINED = [name for name in catalogue.model_names() if catalogue.declaration(name).is_trained]


def made(name: str, n_items: int, n_users: int, seed: int) -> Model:
    kind = model_class(name)
    fields = catalogue.declaration(name).params.model_fields
    params = kind.Params(**{n: v for n, v in SMALL.items() if n in fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(params, n_items, n_users)
        for weight in model.parameters():
            torch.nn.init.normal_(weight.data, std=0.5)
    return model.eval()


def served(model: Model, ids: list[str]) -> Recommender:
    own = np.array(ids, dtype=object)
    return Recommender(model, own, np.ones(len(ids), np.int64), False, {}, torch.device("cpu"))


@pytest.mark.parametrize("name", TRAINED)
def test_known_items_are_scored_as_before(name: str) -> None:
    old, new = made(name, len(OLD), 3, seed=0), made(name, len(NEW), 5, seed=1)
    untouched = {n: weight.clone() for n, weight in new.named_parameters()}
    before_it = served(old, OLD)
    warm.first_weights(before_it, warm.numbers(before_it, NEW))(new)
    of_users = warm._grows(new, users=1)
    changed = [n for n, weight in new.named_parameters() if not weight.equal(untouched[n])]
    assert set(changed) == untouched.keys() - of_users
    for n in of_users:  # a checkpoint does not say who its users are
        with torch.no_grad():
            table, source = dict(new.named_parameters())[n], dict(old.named_parameters())[n]
            table.zero_()
            source.zero_()
    scores = [
        dict(zip(found.items, found.scores, strict=True))
        for found in (
            served(one, ids).recommend([["c", "a", "e"]], k=99)[0]
            for one, ids in ((old, OLD), (new, NEW))
        )
    ]
    for item in set(OLD) & set(NEW):
        assert scores[1][item] == pytest.approx(scores[0][item], abs=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_what_is_new_keeps_its_own_vectors(name: str) -> None:
    old, new = made(name, len(OLD), 3, seed=0), made(name, len(NEW), 5, seed=1)
    table, before = new.item_embedding.weight, old.item_embedding.weight
    own = table.detach().clone()
    before_it = served(old, OLD)
    warm.first_weights(before_it, warm.numbers(before_it, NEW))(new)
    for number, item in enumerate(NEW, start=1):
        known = OLD.index(item) + 1 if item in OLD else None
        assert table[number].equal(own[number] if known is None else before[known])
    assert table[len(NEW) + 1 :].equal(before[len(OLD) + 1 :])  # the mask, where there is one


def test_numbers_of_a_catalogue() -> None:
    model = made("sasrec", 3, 3, seed=0)
    ids = Recommender(
        model, np.array([10, 20, 30]), np.ones(3, int), False, {}, torch.device("cpu")
    )
    assert warm.numbers(ids, ["20", 30, 40, "x"]).tolist() == [0, 2, 3, 0, 0]
