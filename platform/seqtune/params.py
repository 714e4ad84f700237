"""Hyperparameters: one declaration each, and everything that is derived from it.

A model declares its hyperparameters once, as a pydantic class nested in the model:

    class SASRec(Encoder):
        class Params(TrainParams):
            n_layers: Depth = 2

Validation, ``--set n_layers=3``, the edges of a search range, the documentation and the MLflow
parameters all read that line. ``declaration`` reads it without importing torch, so that a mistake
is answered in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from seqtune.errors import UserError, nearest

# Shared field types: what two or more models declare, described once.

Depth = Annotated[int, Field(ge=1, le=32, description="Number of encoder blocks.")]
Heads = Annotated[
    int, Field(ge=1, le=64, description="Attention heads; must divide embedding_size.")
]
Width = Annotated[int, Field(ge=1, le=8192, description="Width of the feed-forward layer.")]
Hidden = Annotated[int, Field(ge=1, le=8192, description="Size of the recurrent state.")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Dropout rate.")]
AttentionDropout = Annotated[
    float,
    Field(ge=0, lt=1, description="Dropout rate on attention weights; 0 keeps the flash kernel."),
]
Temperature = Annotated[
    float, Field(gt=0, le=100, description="Temperature that divides similarities.")
]
LossWeight = Annotated[
    float, Field(ge=0, le=100, description="Weight of this term beside the main loss.")
]
Patience = Annotated[
    int,
    Field(
        ge=1,
        le=10_000,
        description="Epochs without improvement before stopping; those not evaluated count too.",
    ),
]
Similarity = Annotated[
    Literal["dot", "cos"], Field(description="Similarity of two views: dot product or cosine.")
]
TrainMode = Annotated[
    Literal["rows", "prefixes"],
    Field(
        description="Training samples: rows (loss at every position of a window) or prefixes "
        "(one sample per target, loss at the last position)."
    ),
]
NextItemLoss = Annotated[
    Literal["ce", "sampled_softmax", "bce", "bpr", "gbce"],
    Field(
        description="Loss: ce (softmax over the whole catalogue), sampled_softmax, bce, bpr, "
        "or gbce (generalised BCE, arXiv 2308.07192)."
    ),
]


Calibration = Annotated[
    float,
    Field(ge=0, le=1, description="Calibration of the gbce loss; 0 is bce, 1 corrects in full."),
]
Reject = Annotated[
    Literal["none", "target", "seen"],
    Field(description="Negatives never drawn: the target, or all items the user has seen."),
]


class TrainParams(BaseModel):
    """Hyperparameters that every model has.

    Values are coerced by declared type (YAML reads ``1e-4`` as a string), a bool never passes as
    a number, and an unknown name is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    embedding_size: int = Field(64, ge=1, le=8192, description="Size of item vectors.")
    max_seq_len: int = Field(
        50, ge=1, le=10_000, description="Longest history, in items, that the model sees."
    )
    batch_size: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Windows per optimizer step, on average and over all workers; steps have about "
        "equal numbers of targets.",
    )
    tokens_per_batch: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Items at the input per optimizer step, on average and over all workers, in "
        "place of batch_size; 0: batch_size counts.",
    )
    window_stride: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Rows mode, histories longer than max_seq_len: distance between training "
        "windows, each target trained once; 0 trains on the last window only.",
    )
    epochs: int = Field(200, ge=0, le=100_000, description="Upper bound; early stopping ends it.")
    patience: Patience = 20
    eval_every: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Epochs between evaluations; the first and the last epoch are evaluated in any "
        "case. 0 chooses, up to 10, so that it costs a tenth of training.",
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Peak step size.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Shape of the step size after warm-up, over all epochs."
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="Steps of linear warm-up.")
    optimizer: Literal["adamw", "adagrad"] = Field("adamw", description="Optimizer.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Second-moment decay of AdamW.")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="Momentum of adagrad's steps; adamw has one of its own, .9."
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="Decoupled decay of matrices; tables and gains are exempt."
    )
    reg_weight: float = Field(
        0.0, ge=0, le=1, description="L2 on the distinct item vectors of a worker's batch."
    )
    grad_clip_norm: float = Field(0.0, ge=0, le=1e6, description="Gradient norm bound; 0 is off.")
    neg_samples: int = Field(
        1, ge=0, le=1_000_000, description="Negatives per target, for losses that sample."
    )
    neg_sharing: Literal["auto", "position", "row", "batch"] = Field(
        "auto",
        description="Who shares a set of negatives: each position, a row, or the batch; auto is "
        "position below 32 negatives, else row.",
    )
    reject: Reject = "target"
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the encoder.")
    compile: bool = Field(
        False,
        description="Compile the encoder (torch.compile): for long trainings on a GPU, since the "
        "first step then takes up to a minute; no gain on a CPU.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initialisation, order, dropout.")

    @property
    def row_shape(self) -> tuple[int, int]:
        """Rows mode: the length of a training row, and the stride between those of a long history.

        A model whose window is much shorter than its training rows says so here (Caser).
        """
        return self.max_seq_len, self.window_stride

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_booleans(cls, value: object, info: Any) -> object:
        wants_bool = cls.model_fields[info.field_name].annotation is bool
        if isinstance(value, bool) and not wants_bool:
            raise ValueError("must be a number or a name, not true/false")
        if wants_bool and not isinstance(value, bool) and value not in ("true", "false"):
            raise ValueError("must be true or false")
        return value

    @model_validator(mode="after")
    def _momentum_needs_adagrad(self) -> Self:
        if self.momentum and self.optimizer != "adagrad":
            raise ValueError(
                f"momentum must be 0 with optimizer {self.optimizer}, which has one of its own, "
                f"not {self.momentum}; optimizer adagrad takes it"
            )
        return self


class BlockParams(TrainParams):
    """What every model of Transformer blocks has, also one that names its dropout rates itself."""

    n_layers: Depth = 2
    n_heads: Heads = 2
    inner_size: Width = 256
    loss_type: NextItemLoss = "ce"
    gbce_t: Calibration = 0.75

    @model_validator(mode="after")
    def _heads_divide_size(self) -> Self:
        size, heads = self.embedding_size, self.n_heads
        if size % heads:
            near = next(n for n in range(heads, 0, -1) if size % n == 0)
            raise ValueError(f"n_heads must divide embedding_size {size}, not {heads}; {near} does")
        return self


class TransformerParams(BlockParams):
    """Hyperparameters that every Transformer has."""

    dropout_prob: Dropout = 0.5
    attn_dropout_prob: AttentionDropout = 0.0


class PrefixParams(TransformerParams):
    """Hyperparameters of a Transformer whose states see later items: it trains on prefixes."""

    train_mode: TrainMode = "prefixes"

    @model_validator(mode="after")
    def _rows_would_leak(self) -> Self:
        causal = getattr(self, "causal", None)
        if self.train_mode == "rows" and not causal:
            way_out = "" if causal is None else ", or causal: true"
            raise ValueError(
                "train_mode rows would leak, since a state of this model sees the items that "
                f"follow, its own target among them; use prefixes{way_out}"
            )
        return self


P = TypeVar("P", bound=TrainParams)


def build(params: type[P], values: Mapping[str, object], place: str) -> P:
    """Checks ``values`` and returns the hyperparameters; the first mistake is a UserError."""
    try:
        return params.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_sentence(params, error, place)) from None


def check(params: type[TrainParams], name: str, value: object, place: str) -> Any:
    """Checks one value by its declaration alone and returns it in its declared type."""
    check_name(params, name, place)
    try:
        # Cross-field rules are model validators: assignment to a bare instance skips them.
        bare = params.model_construct()
        params.__pydantic_validator__.validate_assignment(bare, name, value)
    except ValidationError as error:
        own = [e for e in error.errors() if e["loc"][:1] == (name,)]
        if own:
            raise UserError(_sentence(params, error, place)) from None
        return value
    return getattr(bare, name)


def check_name(params: type[TrainParams], name: str, place: str) -> None:
    """Raises a UserError with the nearest name where ``name`` is not a hyperparameter."""
    if name not in params.model_fields:
        model = params.__qualname__.split(".")[0].lower()
        raise UserError(
            f"{place}: {model} has no hyperparameter {name!r}{nearest(name, params.model_fields)}"
        )


def parse_assignment(text: str, place: str = "--set") -> tuple[str, object]:
    """Reads ``name=value``; the value is read as YAML, so numbers, booleans and null are typed."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UserError(f"{place} {text}: write name=value, for example {place} n_layers=3")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return name.strip(), value


def _sentence(params: type[TrainParams], error: ValidationError, place: str) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        try:
            check_name(params, str(first["loc"][0]), place)
        except UserError as unknown:
            return str(unknown)
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not first["loc"]:
        return f"{place}: {rule}"
    if not rule.startswith("must"):
        rule = f"must be {rule}"
    return f"{place}: {first['loc'][0]} {rule}, not {first['input']!r}"
