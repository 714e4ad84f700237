"""NARM: what attends to what, and what is dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seqtune.model import History
from seqtune.models.narm import NARM, _Energies


def model(**values: object) -> NARM:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 10, "max_seq_len": 6}
    return NARM(NARM.Params.model_validate(sizes | values), 9, 2)


def history(rows: list[list[int]]) -> History:
    items = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return History(torch.arange(len(rows)), items, torch.tensor([len(row) for row in rows]))


def slow_energies(key: Tensor, query: Tensor, v: Tensor) -> Tensor:
    """The whole (B, L, L, H) at once."""
    return ((key[:, None] + query[:, :, None]).sigmoid() @ v).tril()


def test_energies_one_query_at_a_time_equal_all_at_once_with_their_gradients() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, 5), torch.randn(3, 7, 5), torch.randn(5)]
    weight = torch.randn(3, 7, 7)
    results = []
    for function in (_Energies.apply, slow_energies):
        leaves = [x.clone().requires_grad_() for x in inputs]
        energies = function(*leaves)  # type: ignore[no-untyped-call]
        (energies * weight).sum().backward()
        results.append([energies.detach(), *(x.grad for x in leaves)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_later_items_have_no_energy_and_no_gradient() -> None:
    torch.manual_seed(0)
    key, query = (torch.randn(2, 5, 4, requires_grad=True) for _ in range(2))
    energies = _Energies.apply(key, query, torch.ones(4))  # type: ignore[no-untyped-call]
    assert not energies.triu(1).any()
    energies[:, 2].sum().backward()  # of the third query
    assert key.grad is not None
    assert query.grad is not None
    assert key.grad.abs().sum(-1).gt(0).tolist() == [[True, True, True, False, False]] * 2
    assert query.grad.abs().sum(-1).gt(0).tolist() == [[False, False, True, False, False]] * 2


def test_the_first_half_of_the_decoder_reads_the_attended_state_and_the_second_the_last() -> None:
    made = model().eval()
    rows = history([[1, 2, 3, 4], [5, 6, 7, 4]])
    with torch.no_grad():
        made.energy.weight.zero_()  # equal weights: the attended state is the mean
        states = made.hidden(rows)
        local, final = states.mean(1), states[:, -1]
        left, right = made.decoder.weight.chunk(2, dim=1)
        expected = local @ left.T + final @ right.T
        torch.testing.assert_close(made.encode_last(rows), expected)


def test_without_the_softmax_weights_are_the_energies() -> None:
    made = model(attn_norm="none").eval()
    rows = history([[1, 2, 3]])
    with torch.no_grad():
        for part in (made.key, made.query):
            part.weight.zero_()  # so each sigmoid is .5
        states = made.hidden(rows)[0]
        energy = 0.5 * made.energy.weight.sum()
        local = energy * states.sum(0)
        expected = made.decoder(torch.cat([local, states[-1]]))
        torch.testing.assert_close(made.encode_last(rows)[0], expected)


@pytest.mark.parametrize("attn_norm", ["softmax", "none"])
def test_padding_gets_no_weight(attn_norm: str) -> None:
    made = model(attn_norm=attn_norm).eval()
    short = history([[1, 2]])
    padded = History(short.users, nn.functional.pad(short.items, (0, 4)), short.lengths)
    torch.testing.assert_close(made.encode_last(padded), made.encode_last(short))
    torch.testing.assert_close(made.encode(padded)[:, :2], made.encode(short))


def test_the_newest_items_of_a_long_history_count_not_the_oldest() -> None:
    made = model().eval()
    rows = history([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]])
    first, second = made.score(rows)
    assert not first[1:].allclose(second[1:])


def test_each_rate_of_dropout_acts_where_its_description_says() -> None:
    rows = history([[1, 2, 3, 4]])
    items = model(dropout_prob=0.5, decoder_dropout_prob=0.0).train()
    assert not items.hidden(rows).equal(items.hidden(rows))
    decoder = model(dropout_prob=0.0, decoder_dropout_prob=0.5).train()
    assert decoder.hidden(rows).equal(decoder.hidden(rows))
    assert not decoder.encode(rows).equal(decoder.encode(rows))
    # With dropout .5 a coordinate of (attended, last) is 0 or twice itself.
    decoder.decoder.weight = nn.Parameter(torch.eye(20))
    dropped = decoder.encode(rows)
    kept = decoder.eval().encode(rows)
    assert ((dropped == 0) | dropped.isclose(2 * kept)).all()
    assert 0 < (dropped == 0).float().mean() < 1
    none = model(dropout_prob=0.0, decoder_dropout_prob=0.0).train()
    assert none.encode(rows).equal(none.encode(rows))
