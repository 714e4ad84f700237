"""Hyperparameters: one declaration each, and everything that is derived from it.

A model declares its hyperparameters once, as a pydantic class nested in the model:

    class SASRec(TransformerEncoder):
        class Params(Blocks):
            norm: Norm = "post"
            batch_size: BatchSize = 512

A name such as ``BatchSize`` carries the type, the bounds and the description, which stand here
once; a model says its default. Validation, ``--set n_layers=3``, the edges of a search range, the
documentation and the MLflow parameters all read that line. ``declaration`` reads it without
importing torch, so that a mistake is answered in a fraction of a second.

``Params`` is what every model has, ``Trained`` what every model that is trained has, ``Blocks``
what Transformers have, and ``OnPrefixes`` is for models that cannot train on rows.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from seqtune.errors import UserError, nearest
from seqtune.yamltext import scalar

SAMPLING = ("sampled_softmax", "bce", "bpr", "gbce", "window_bce")  # losses that draw neg_samples

# What every model has.

MaxSeqLen = Annotated[
    int,
    Field(
        ge=1, le=10_000, description="The model sees this many items of a history, the last ones."
    ),
]
Seed = Annotated[
    int, Field(ge=0, lt=2**31, description="It seeds the initial weights, the order and dropout.")
]

# What every model has that is trained.

EmbeddingSize = Annotated[int, Field(ge=1, le=8192, description="An item vector has this size, d.")]
BatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=1_000_000,
        description="An optimizer step takes this many rows or prefixes, on average and over all "
        "workers; steps have about equal numbers of targets.",
    ),
]
TokensPerBatch = Annotated[
    int,
    Field(
        ge=0,
        le=100_000_000,
        description="An optimizer step takes this many items at the input, on average and over all "
        "workers; 0 leaves the size of a step to batch_size.",
    ),
]
WindowStride = Annotated[
    int,
    Field(
        ge=0,
        le=10_000,
        description="Windows of a history longer than max_seq_len lie this many items apart, and "
        "each target is trained once; 0 trains on the last window only.",
    ),
]
Epochs = Annotated[
    int,
    Field(ge=0, le=100_000, description="Training ends after this many epochs, if not before."),
]
Patience = Annotated[
    int,
    Field(
        ge=1,
        le=10_000,
        description="Training ends after this many epochs without improvement; epochs that are not "
        "evaluated count too.",
    ),
]
EvalEvery = Annotated[
    int,
    Field(
        ge=0,
        le=10_000,
        description="Every this many epochs the model is evaluated, and after the first and the "
        "last in any case; 0 chooses, up to 10, so that it costs a tenth of training.",
    ),
]
LearningRate = Annotated[
    float, Field(gt=0, le=10, description="The optimizer takes steps of at most this size.")
]
LrScheduler = Annotated[
    Literal["constant", "linear", "cosine"],
    Field(description="After warm-up the step size keeps to this shape until the last epoch."),
]
WarmupSteps = Annotated[
    int,
    Field(
        ge=0, le=1_000_000, description="The step size grows linearly over this many first steps."
    ),
]
Optimizer = Annotated[
    Literal["adamw", "adagrad"], Field(description="This algorithm turns gradients into steps.")
]
AdamBeta2 = Annotated[
    float,
    Field(ge=0, lt=1, description="AdamW's mean of squared gradients decays by this factor."),
]
Momentum = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Adagrad keeps this share of its last step; AdamW has a momentum of its own.",
    ),
]
WeightDecay = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Matrices decay by this rate times the step size; embedding tables, biases "
        "and gains are spared.",
    ),
]
RegWeight = Annotated[
    float,
    Field(ge=0, le=1, description="The loss adds so much L2 of the item vectors of a batch."),
]
GradClipNorm = Annotated[
    float,
    Field(ge=0, le=1e6, description="Gradients are scaled down to this norm; 0 leaves them."),
]
NegSamples = Annotated[
    int,
    Field(ge=0, le=1_000_000, description="A loss that samples draws k negatives for a target."),
]
NegSharing = Annotated[
    Literal["auto", "position", "row", "batch"],
    Field(
        description="One set of negatives is drawn for each position, row or batch; auto takes "
        "position below 32 negatives, else row."
    ),
]
Reject = Annotated[
    Literal["none", "target", "seen"],
    Field(
        description="Negatives are never the target (target), never an item that the user has "
        "seen (seen), or any item (none)."
    ),
]
Precision = Annotated[
    Literal["fp32", "tf32", "bf16"],
    Field(
        description="Training computes in this arithmetic, evaluation always in fp32. With tf32 a "
        "GPU multiplies matrices with 10 bits of the mantissa in place of 23; a CPU has no tf32 "
        "and takes fp32. With bf16 the encoder has 7 bits, and the products of the loss are as "
        "with tf32."
    ),
]
Compile = Annotated[
    bool,
    Field(
        description="The encoder is compiled (torch.compile), which pays in long trainings on a "
        "GPU, since the first step then takes up to a minute; a CPU gains nothing."
    ),
]
TrainMode = Annotated[
    Literal["rows", "prefixes"],
    Field(
        description="A training sample is a row (a window with a loss at every position) or a "
        "prefix (one target, with the loss at the last position)."
    ),
]
NextItemLoss = Annotated[
    Literal["ce", "sampled_softmax", "bce", "bpr", "gbce"],
    Field(
        description="The loss is ce (a softmax over the whole catalogue), or compares the target "
        "with sampled items: sampled_softmax, bce, bpr, or gbce (generalised BCE, arXiv "
        "2308.07192)."
    ),
]
Calibration = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="The loss gbce corrects so much of the overconfidence that sampling causes "
        "(t in the paper); 0 is bce.",
    ),
]

# What two or more models declare.

Depth = Annotated[int, Field(ge=1, le=32, description="The encoder has this many blocks.")]
Heads = Annotated[
    int,
    Field(ge=1, le=64, description="Attention has this many heads, which must divide the size d."),
]
Width = Annotated[
    int, Field(ge=1, le=8192, description="The inner layer of a feed-forward has this width.")
]
Dropout = Annotated[
    float, Field(ge=0, lt=1, description="Dropout sets this share of a layer's output to 0.")
]
AttentionDropout = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Dropout sets this share of attention weights to 0; without it the fast flash "
        "kernel applies.",
    ),
]
ItemDropout = Annotated[
    float,
    Field(ge=0, lt=1, description="Dropout sets this share of the item vectors at input to 0."),
]
Hidden = Annotated[int, Field(ge=1, le=8192, description="The recurrent state has this size, H.")]


def _sizes(text: str) -> str:
    sizes = text.split("/") if text else []
    if len(sizes) > 8 or not all(n.isdecimal() and 1 <= int(n) <= 8192 for n in sizes):
        raise ValueError("must be up to 8 sizes from 1 to 8192, such as 100 or 100/50")
    return text


LayerSizes = Annotated[
    str,
    Field(coerce_numbers_to_str=True, description="Official stacks layers of these sizes: 100/50."),
    AfterValidator(_sizes),
]
RecurrentDepth = Annotated[
    int, Field(ge=1, le=8, description="The network has this many recurrent layers.")
]
Norm = Annotated[
    Literal["post", "pre", "sasrec"],
    Field(
        description="A block normalises after its layers (post), before them (pre), or as the "
        "official code of SASRec does."
    ),
]
Activation = Annotated[
    Literal["gelu", "relu"], Field(description="The feed-forward applies this function inside.")
]
Position = Annotated[
    Literal["abs", "rev"],
    Field(description="Positions are counted from the oldest item (abs) or the newest (rev)."),
]
TieWeights = Annotated[
    bool, Field(description="One item table serves for both the history and the scores.")
]
Temperature = Annotated[
    float, Field(gt=0, le=100, description="Similarities are divided by this temperature, tau.")
]
LossWeight = Annotated[
    float, Field(ge=0, le=100, description="This weight, lambda, stands before the contrast.")
]
Similarity = Annotated[
    Literal["dot", "cos"],
    Field(description="Two views are compared by their dot product or by their cosine."),
]
GatherNegatives = Annotated[
    bool,
    Field(
        description="Of several workers each takes the rows of all as negatives, as one worker "
        "would; false takes its own alone."
    ),
]

# Hyperparameter, or several, to where its default comes from: "paper", "official" (the authors'
# code) or "ours: why".
Sources = Mapping[str, str]


class Declared(BaseModel):
    """How values are read: coerced by their declared type, but a bool is never a number."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=True,
        loc_by_alias=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_booleans(cls, value: object, info: Any) -> object:
        wants_bool = cls.model_fields[info.field_name].annotation is bool
        if isinstance(value, bool) and not wants_bool:
            raise ValueError("must be a number or a name, not true/false")
        if wants_bool and not isinstance(value, bool) and value not in ("true", "false"):
            raise ValueError("must be true or false")
        return value


class Params(Declared):
    """Hyperparameters that every model has.

    Values are coerced by declared type (YAML reads ``1e-4`` as a string), a bool never passes as
    a number, and an unknown name is an error. A field with ``validation_alias`` is also read by
    that name, WarpRec's, and stored by its own. A field whose type has one value alone is a fact
    about the model: its description says why, and it is not offered.
    """

    sources: ClassVar[Sources] = {}  # of every default that the model sets

    max_seq_len: MaxSeqLen = 50
    seed: Seed = 0


class Trained(Params):
    """Hyperparameters of a model that is trained: its size, samples, loss and optimizer."""

    embedding_size: EmbeddingSize = 64
    train_mode: TrainMode = "rows"
    batch_size: BatchSize = 128
    tokens_per_batch: TokensPerBatch = 0
    window_stride: WindowStride = 0
    epochs: Epochs = 200
    patience: Patience = 20
    eval_every: EvalEvery = 0
    learning_rate: LearningRate = 1e-3
    lr_scheduler: LrScheduler = "constant"
    warmup_steps: WarmupSteps = 0
    optimizer: Optimizer = "adamw"
    adam_beta2: AdamBeta2 = 0.999
    momentum: Momentum = 0.0
    weight_decay: WeightDecay = 0.0
    reg_weight: RegWeight = 0.0
    grad_clip_norm: GradClipNorm = 0.0
    loss_type: NextItemLoss = "ce"
    gbce_t: Calibration = 0.75
    neg_samples: NegSamples = 1
    neg_sharing: NegSharing = "auto"
    reject: Reject = "target"
    precision: Precision = "fp32"
    compile: Compile = False

    @property
    def row_shape(self) -> tuple[int, int]:
        """Rows mode: the length of a training row, and the stride between those of a long history.

        A model whose window is much shorter than its training rows says so here (Caser).
        """
        return self.max_seq_len, self.window_stride

    @model_validator(mode="after")
    def _momentum_needs_adagrad(self) -> Self:
        if self.momentum and self.optimizer != "adagrad":
            raise ValueError(
                f"momentum must be 0 with optimizer {self.optimizer}, which has one of its own, "
                f"not {self.momentum}; optimizer adagrad takes it"
            )
        return self


class Blocks(Trained):
    """Hyperparameters of a model of Transformer blocks."""

    n_layers: Depth = 2
    n_heads: Heads = 2
    inner_size: Width = 256
    dropout_prob: Dropout = 0.5
    attn_dropout_prob: AttentionDropout = 0.0

    @model_validator(mode="after")
    def _heads_divide_size(self) -> Self:
        size, heads = self.embedding_size, self.n_heads
        if size % heads:
            near = next(n for n in range(heads, 0, -1) if size % n == 0)
            raise ValueError(f"n_heads must divide embedding_size {size}, not {heads}; {near} does")
        return self


class OnPrefixes(Trained):
    """Hyperparameters of a model whose states see later items, so that rows would leak.

    A Transformer writes ``class Params(OnPrefixes, Blocks)``.
    """

    train_mode: Annotated[
        Literal["prefixes"],
        Field(
            description="Rows would leak: a state of this model sees the items that follow, its "
            "own target among them."
        ),
    ] = "prefixes"
    window_stride: Annotated[
        Literal[0], Field(description="Each prefix is a sample of its own, without windows.")
    ] = 0


def training(params: Params) -> Trained:
    """Returns the hyperparameters of training; a model that is not trained has no epochs."""
    if isinstance(params, Trained):
        return params
    return Trained(max_seq_len=params.max_seq_len, seed=params.seed, epochs=0)


def is_fixed(field: FieldInfo) -> bool:
    """Tells whether a field has one value alone: a fact about the model, nothing to choose."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def origins(params: type[Params]) -> dict[str, str]:
    """Returns where each default comes from that the model sets, in words that may be printed."""
    told = {"paper": "the paper", "official": "official code"}
    return {
        name: told.get(source, source)
        for names, source in params.sources.items()
        for name in names.split()
    }


def aliases(params: type[Params]) -> dict[str, str]:
    """Returns the other names that are understood, WarpRec's, each with the name of the field."""
    fields = params.model_fields.items()
    return {f.validation_alias: n for n, f in fields if isinstance(f.validation_alias, str)}


P = TypeVar("P", bound=Params)


def build(params: type[P], values: Mapping[str, object], place: str) -> P:
    """Checks ``values`` and returns the hyperparameters; the first mistake is a UserError."""
    named: dict[str, object] = {}
    for given, value in values.items():
        name = check_name(params, given, place)
        if name in named:
            other = next(other for other, known in aliases(params).items() if known == name)
            raise UserError(f"{place}: {other} and {name} are one hyperparameter; give {name} once")
        named[name] = value
    try:
        return params.model_validate(named)
    except ValidationError as error:
        raise UserError(_sentence(params, error, place)) from None


def fitted(
    params: type[Params],
    values: Mapping[str, Any],
    n_items: int,
    place: str,
    given: Collection[str] | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the values that suit data of ``n_items`` items, and a sentence for each changed one.

    Defaults, and values that nobody insists on, are lowered to what the data allow.

    Args:
        params: the hyperparameters of a model.
        values: those that differ from the defaults.
        n_items: the items of the data.
        place: where the values stand, for mistakes.
        given: those that the user gave; None: all of ``values``.

    Raises:
        UserError: a value that was given cannot work with these data.
    """
    p = training(build(params, values, place))
    if p.loss_type not in SAMPLING:
        return dict(values), ()
    k, most = p.neg_samples, n_items - 1
    is_given = "neg_samples" in {
        check_name(params, n, place) for n in (values if given is None else given)
    }
    if most < 1:
        raise UserError(f"{place}: loss_type {p.loss_type} needs 2 items or more, not {n_items}")
    if k < 1:
        raise UserError(
            f"{place}: neg_samples must be at least 1 with loss_type {p.loss_type}, not {k}"
        )
    if k > most and is_given and p.loss_type == "gbce":
        raise UserError(
            f"{place}: neg_samples must be at most {most} with loss_type gbce, one less than the "
            f"{n_items} items of the data, not {k}"
        )
    if k <= most or is_given:
        return dict(values), ()
    note = f"neg_samples is {most} in place of {k}, since the data have {n_items} items."
    return dict(values) | {"neg_samples": most}, (note,)


def check(params: type[Params], name: str, value: object, place: str) -> Any:
    """Checks one value by its declaration alone and returns it in its declared type."""
    name = check_name(params, name, place)
    try:
        return getattr(_alone(params, name).model_validate({name: value}), name)
    except ValidationError as error:
        raise UserError(_sentence(params, error, place)) from None


@functools.cache
def _alone(params: type[Params], name: str) -> type[Declared]:
    """Returns a declaration of one hyperparameter, without the rules between several."""
    field = copy.copy(params.model_fields[name])
    fields: Any = {name: (field.annotation, field)}
    return create_model(params.__qualname__, __base__=Declared, **fields)


def check_name(params: type[Params], name: str, place: str) -> str:
    """Returns the name of the hyperparameter that ``name`` is, which may be an alias of it.

    Raises:
        UserError: there is none; the sentence has the nearest name.
    """
    known = aliases(params)
    name = known.get(name, name)
    if name not in params.model_fields:
        model = params.__qualname__.split(".")[0].lower()
        near = nearest(name, [*params.model_fields, *known])
        raise UserError(f"{place}: {model} has no hyperparameter {name!r}{near}")
    return name


def parse_assignment(text: str, place: str = "--set") -> tuple[str, object]:
    """Reads ``name=value``; the value is read as YAML, so numbers, booleans and null are typed."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UserError(f"{place} {text}: write name=value, for example {place} n_layers=3")
    return name.strip(), scalar(value)


def _sentence(params: type[Params], error: ValidationError, place: str) -> str:
    first = error.errors()[0]
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not first["loc"]:
        return f"{place}: {rule}"
    if not rule.startswith("must"):
        rule = f"must be {rule}"
    name = str(first["loc"][0])
    field = params.model_fields[name]
    why = f" ({field.description})" if is_fixed(field) else ""
    return f"{place}: {name} {rule}, not {first['input']!r}{why}"
