"""The settings of one experiment, validated; every default of the command line in one place. Needs no PyTorch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.federation import compress, links, names, poison, robust
from data_partitions.datasets import NAMES, Choices, short_name
from data_partitions.partitioners import parse

Format = Literal["4", "8", "16", "float16", "32"]
"""Bits of a parameter on the wire; 32 does not quantize."""
UNQUANTIZED = "32"
TUNED = Path(__file__).resolve().parents[1] / "tuned.yaml"
Weights = Literal["dense", "fedpara", "pfedpara", "lowrank", "fedsa"]
FACTORS: tuple[Literal["pfedpara", "fedpara", "lowrank", "fedsa"], ...] = ("pfedpara", "fedpara", "lowrank", "fedsa")
# What a run does on the way, without any effect on its figures.
CONDUCT = {
    "out",
    "data_dir",
    "state_dir",
    "checkpoint_every",
    "checkpoint_minutes",
    "comm_timeout",
    "histograms",
    "track",
}
# What FedML's own managers have nothing for.
NOT_IN_FEDML = (
    *("quantize", "quantize_down", "codec", "dp_clip", "poison", "dropout", "stragglers", "deadline", "links"),
    "comm_timeout",
)
# What says how a run is called, and where its values come from, not what is run.
NAMING = {"name", "shown", "tuned"}


def one_name(algo: str, parameterization: str | None) -> tuple[str, str]:
    """Returns a method and its weights, by default its own, as both are called: FedAvg on factors has their name."""
    weights = parameterization or (algo if algo in FACTORS else names.WEIGHTS.get(algo, "dense"))
    return weights if algo == "fedavg" and weights in FACTORS else algo, weights


def noised(clip: float, noise: float) -> str:
    """Returns how a label says that updates are clipped, and that their mean gets noise."""
    return f"-dp{clip:g}" * bool(clip) + f"-noise{noise:g}" * bool(noise)


class Settings(BaseModel):
    """One run: a method on a partition with a seed. Raises pydantic's ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algo: str = Field(
        "pfedpara", description="methods, one after another in one process group; 'help' lists them; or MODULE:NAME"
    )
    dataset: str = Field("mnist5k", description=f"{' | '.join(NAMES)} | MODULE:NAME")
    data_dir: Path = Field(Path("data"), description="where raw data lies or is downloaded to")
    image_size: int | None = Field(None, ge=1, description="pixels a side that pictures of folder: and hf: get")
    label_column: str | None = Field(None, description="the classes of csv: and hf: (default: label)")
    client_column: str | None = Field(None, description="the clients of csv: and hf: (default: client, if there)")
    partition: str = Field(
        "dirichlet:0.5",
        description="who has which samples, one run each: iid | dirichlet:ALPHA | shards:K | classes:K | "
        "quantity:ALPHA | natural",
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of each client's training samples that is kept")
    tuning: bool = Field(False, description="train on the half of the data set that is set aside for tuning")
    clients: int = Field(10, ge=1, description="clients that hold data")
    clients_per_round: int = Field(10, ge=1, description="clients drawn for each round (default: all)")
    new_clients: int = Field(
        0,
        ge=0,
        description="further clients that hold data, never train for others, and are judged after the last round",
    )
    rounds: int = Field(30, ge=1, description="rounds of communication")
    parameterization: Weights = Field(
        "dense",
        description="the model's weights, one run each: dense | fedpara | pfedpara (personal factors) | lowrank | "
        "fedsa (a personal factor); by default the method's own",
    )
    metric: list[str] = Field([], description="what else clients are judged by, beside the usual metrics: MODULE:NAME")
    dense: list[str] = Field(
        [], description="modules that stay dense where the weights are factored, such as mlp's classifier"
    )
    alternate: bool = Field(
        False, description="train and send one shared factor of each weight a round, in turn, and hold the others still"
    )
    quantize: Format = Field(
        "32", description="bits of a parameter on the uplink, one run each: 4 | 8 | 16 | float16 | 32"
    )
    quantize_down: Format = Field("32", description="bits of a parameter on the downlink: 4 | 8 | 16 | float16 | 32")
    codec: str = Field(
        compress.NONE,
        description="what of an update travels up, while the rest waits on the client, one run each: topk:SHARE | "
        "randk:SHARE | sign | powersgd:RANK | none (all of it)",
    )
    dp_clip: float = Field(
        0,
        ge=0,
        description="clip a client's update, all that it sends, to the Euclidean norm C, and count each participant "
        "alike, one run each; 0: neither",
    )
    dp_noise: float = Field(
        0,
        ge=0,
        description="differential privacy of clients: add Gaussian noise of deviation SIGMA x C / participants to "
        "their mean update, one run each; C is --dp-clip's",
    )
    dp_seed: int | None = Field(
        None, ge=0, description="draw that noise from seed N, so that runs repeat; such a run is not private"
    )
    aggregate: str = Field(
        robust.MEAN,
        description="what of the updates becomes the new model, one run each: mean | median | trimmed[:F] | krum[:F] "
        "(F clients may be wrong)",
    )
    poison: str = Field(
        poison.NONE,
        description="K clients poison, and the others are judged, one run each: labels[:K] | trigger[:K] | replace[:K] "
        "| none",
    )
    model: str = Field("mlp", description="")  # the command line lists those that are here
    seed: int = Field(0, ge=0, lt=2**64, description="seeds of partition, start and batches, one run each")
    out: Path = Field(Path("runs"), description="folder of results: OUT/<dataset>-<partition>/<algo>/seed<k>/")
    eval_every: int = Field(
        1, ge=0, description="judge the clients each N rounds and after the last one; 0: after the last one alone"
    )
    checkpoint_every: int = Field(
        10, ge=0, description="write a checkpoint each N rounds and after the last one; 0: after the last one alone"
    )
    checkpoint_minutes: float = Field(
        0, ge=0, description="write a checkpoint too where the last is older than M minutes; 0: never"
    )
    comm_timeout: float = Field(
        1800,
        ge=0,
        description="end the job when an answer is due and no rank has said anything for S seconds; 0: never",
    )
    state_dir: Path | None = Field(
        None, description="keep the clients' private states in files under DIR, not in memory"
    )
    dropout: float = Field(
        0, ge=0, le=1, description="probability that a participant fails in a round, after it received the model"
    )
    stragglers: float = Field(
        0, ge=0, le=1, description="probability that a participant is slowed down in a round, 1 to 10 times (uniform)"
    )
    deadline: float = Field(
        0,
        ge=0,
        description="close a round without the participants whose simulated time (samples x epochs x slowdown) is "
        "above X times the median participant's; 0: wait for all",
    )
    links: str = Field(
        "",
        description="the clients' links, drawn by the seed: lognormal:MEDIAN,SIGMA in Mb/s, or a CSV file with columns "
        "down and up, and client where each has its row",
    )
    deadline_seconds: float = Field(
        0,
        ge=0,
        description="close a round after S seconds: without the participants whose messages and training take longer "
        "by the cost model; needs --links; 0: wait for all",
    )
    threads: int = Field(
        1, ge=1, description="threads of a rank's kernels; other bits than with 1, the same only for the same N"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where clients train: cpu | cuda, where the ranks of a host take its GPUs in turn"
    )
    histograms: bool = Field(False, description="show histograms of the global model's composed weights in TensorBoard")
    track: list[str] = Field([], description="tell trackers too, offline: mlflow | wandb | MODULE:NAME")
    runtime: Literal["own", "fedml"] = Field(
        "own",
        description="what carries the rounds: own (this suite's transport under FedML's managers) | fedml (FedML's own "
        "MPI managers and transport; one rank for each participant of a round, and one more)",
    )
    name: str = Field("", description="what label and folder call the runs, in place of their method")
    shown: list[str] = Field([], description="the settings that the label shows, where runs differ in them")
    hyper: dict[str, Any] = Field({}, description="the method's hyper-parameters, complete")
    tuned: list[str] = Field([], description="those of them that benchmarks/tuned.yaml says")

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: dict[str, Any]) -> dict[str, Any]:
        algo, weights = one_name(values.get("algo", cls.model_fields["algo"].default), values.get("parameterization"))
        return values | {"algo": algo, "parameterization": weights}

    @field_validator("dataset")
    @classmethod
    def _canonical_dataset(cls, dataset: str) -> str:
        kind, _, path = dataset.partition(":")
        return f"{kind}:{Path(path)}" if path else dataset

    @field_validator("partition")
    @classmethod
    def _canonical_partition(cls, partition: str) -> str:
        return parse(partition).spec

    @field_validator("codec")
    @classmethod
    def _canonical_codec(cls, codec: str) -> str:
        return compress.parse(codec)[0]

    @field_validator("links")
    @classmethod
    def _canonical_links(cls, spec: str) -> str:
        return links.canonical(spec)

    @field_validator("aggregate")
    @classmethod
    def _canonical_aggregate(cls, aggregate: str) -> str:
        return robust.parse(aggregate)[0]

    @field_validator("poison")
    @classmethod
    def _canonical_poison(cls, spec: str) -> str:
        return poison.parse(spec)[0]

    @field_validator("dense")
    @classmethod
    def _canonical_dense(cls, dense: list[str]) -> list[str]:
        return sorted(set(dense))

    @field_validator("name")
    @classmethod
    def _a_folder(cls, name: str) -> str:
        if name.startswith(".") or not name.isprintable() or "/" in name or len(name) > 100:
            raise ValueError(f"--name: {name!r} cannot be a folder's name; give one without / and a leading dot")
        return name

    @model_validator(mode="after")
    def _unicode(self) -> "Settings":
        for name, value in self:
            if isinstance(value, str | Path):
                try:
                    str(value).encode()
                except UnicodeEncodeError:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option}: {str(value)!r} is not UTF-8; give a name that is") from None
        return self

    @model_validator(mode="after")
    def _participants(self) -> "Settings":
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"--clients-per-round must be at most --clients ({self.clients}), got {self.clients_per_round}"
            )
        if self.stragglers and not self.deadline:
            raise ValueError(f"--stragglers needs a --deadline above 0, got --stragglers {self.stragglers} alone")
        if self.deadline_seconds and not self.links:
            raise ValueError(
                f"--deadline-seconds {self.deadline_seconds:g} needs the clients' --links, such as lognormal:10,1"
            )
        if self.deadline_seconds and self.deadline:
            raise ValueError(
                f"--deadline {self.deadline:g} and --deadline-seconds {self.deadline_seconds:g} both close a round; "
                "take one of the two"
            )
        return self

    @model_validator(mode="after")
    def _what_fedml_can(self) -> "Settings":
        for name in NOT_IN_FEDML if self.runtime == "fedml" else ():
            if (value := getattr(self, name)) != (plain := type(self).model_fields[name].default):
                option = name.replace("_", "-")
                instead = f"take {plain}" if plain != "" else "leave it out"
                raise ValueError(f"--runtime fedml has no --{option} {value}; {instead}, or --runtime own")
        return self

    @model_validator(mode="after")
    def _one_way_up(self) -> "Settings":
        if self.codec != compress.NONE and self.quantize != UNQUANTIZED:
            raise ValueError(
                f"--codec {self.codec} and --quantize {self.quantize} both pack the uplink; take one of the two"
            )
        return self

    @model_validator(mode="after")
    def _what_noise_needs(self) -> "Settings":
        if self.dp_noise and not self.dp_clip:
            raise ValueError(f"--dp-noise {self.dp_noise:g} needs a --dp-clip above 0: noise is measured by it")
        if self.dp_noise and self.aggregate != robust.MEAN:
            raise ValueError(
                f"--dp-noise {self.dp_noise:g} hides a client in the mean, and --aggregate {self.aggregate} takes "
                "none; take --aggregate mean, or leave the noise out"
            )
        if self.dp_seed is not None and not self.dp_noise:
            raise ValueError(f"--dp-seed {self.dp_seed} draws noise: give a --dp-noise above 0 as well")
        if not self.dp_clip:
            return self
        for name in ("quantize", "codec"):
            if (value := getattr(self, name)) != (plain := type(self).model_fields[name].default):
                raise ValueError(f"--dp-clip: --{name} {value} changes an update after it was clipped; take {plain}")
        for name in ("dropout", "deadline", "deadline_seconds"):
            if value := getattr(self, name):
                option = name.replace("_", "-")
                raise ValueError(
                    f"--dp-clip: with --{option} {value:g} not every client takes part with the same chance; take 0"
                )
        return self

    @property
    def uplink(self) -> str:
        """How the clients' updates are packed."""
        return self.quantize if self.codec == compress.NONE else self.codec

    @property
    def local_optimizer(self) -> str:
        """The clients' optimizer; empty where it is plain SGD."""
        optimizer = self.hyper.get("optimizer", "sgd")
        return "" if optimizer == "sgd" else optimizer

    @property
    def variant(self) -> str:
        """The method on its weights, with its local optimizer: what is tuned."""
        own = names.WEIGHTS.get(self.algo, self.algo)
        weights = "" if self.parameterization in (own, "dense") else self.parameterization
        return "-".join(filter(None, (self.algo, weights, self.local_optimizer)))

    @property
    def label(self) -> str:
        """The method, with what else was chosen that is not its own, and what sets it apart from other runs of it."""
        dense = f"-dense-{'+'.join(self.dense)}" if self.dense else ""
        ways = {"": self.quantize, "down": self.quantize_down}
        codec = [f"-{way}{form}{'bit' * form.isdigit()}" for way, form in ways.items() if form != UNQUANTIZED]
        codec += [f"-{self.codec}"] * (self.codec != compress.NONE)
        codec += [noised(self.dp_clip, self.dp_noise)]
        codec += [f"-{self.aggregate}"] * (self.aggregate != robust.MEAN)
        values = flatten(self.record())
        shown = [f",{show(name, values[name])}" for name in self.shown if name in values]
        method = self.name or self.variant + dense + "-alternate" * self.alternate
        return method + "".join([*codec, *shown])

    @property
    def directory(self) -> Path:
        return self.out / f"{short_name(self.dataset)}-{self.partition}" / self.label / f"seed{self.seed}"

    @property
    def choices(self) -> Choices:
        """How a user's own data are read."""
        return Choices(self.image_size, self.label_column, self.client_column)

    def record(self) -> dict[str, Any]:
        """Returns what tells this experiment from another, as plain values for ``config.yaml``."""
        return self.model_dump(mode="json", exclude=CONDUCT)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config.yaml says; what an earlier version did not write yet has today's default."""
    defaults = {name: field.default for name, field in Settings.model_fields.items() if name not in CONDUCT}
    if isinstance(algo := config.get("algo", defaults["algo"]), str):
        defaults["parameterization"] = one_name(algo, None)[1]
    defaults["clients_per_round"] = config.get("clients", defaults["clients"])
    return defaults | dict(config)


def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings and hyper-parameters of a record side by side, but for those that only name it."""
    hyper = record.get("hyper", {})
    plain = {name: value for name, value in record.items() if name not in {"hyper", *NAMING}}
    return plain | (hyper if isinstance(hyper, dict) else {"hyper": hyper})


def show(name: str, value: Any) -> str:
    """Returns a setting as a label shows it, fit for a folder's name: gamma=0.1."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value).removesuffix(".0")
    return f"{name}=" + (re.sub(r"[^\w.:+-]", "_", text)[-60:] or "none")


def sentence(error: ValidationError) -> str:
    """Returns the first of pydantic's complaints as one sentence that names option and value."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # of a validator above
        return str(first["ctx"]["error"])
    option = str(first["loc"][0]).replace("_", "-")
    return f"--{option}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
