"""Every setting of dtrl, with its default, in one place: frozen dataclasses that the Python API, the command line and TOML files share.

A field's `help` is its documentation; the command line prints it. Nothing here imports torch."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

from dtrl.errors import InputError, did_you_mean


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class SourceConfig:
    """Which data are loaded: all that has to be said again to load the same."""

    datasets: tuple[str, ...]
    """Ids, and absolute paths of folders and files."""
    weights: tuple[float, ...] | None = None
    """How often windows are drawn from each of several datasets, relative to the others; None for every episode of all alike."""
    format: str | None = None
    """Of the files among them, a name in `dtrl.trajectories.formats.FORMATS`; None where it is told by their content."""
    env: str | None = None
    """Id of the environment that the files are from."""
    columns: Mapping[str, Sequence[str]] | None = None
    """Role → the columns of a table that hold it."""

    def __post_init__(self) -> None:
        datasets = [os.path.abspath(d) if os.path.exists(d) else str(d) for d in texts("datasets", self.datasets)]
        object.__setattr__(self, "datasets", tuple(datasets))
        if self.weights is not None:
            if not all(type(w) in (int, float) for w in self.weights):
                raise InputError(f"weights {list(self.weights)!r} must be numbers, one a dataset.")
            object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        for name in ("format", "env"):
            if type(getattr(self, name)) not in (str, type(None)):
                raise InputError(f"{name} {getattr(self, name)!r} is no text.")
        if self.columns is not None:
            if not isinstance(self.columns, Mapping):
                raise InputError(f"columns {self.columns!r} are no mapping from roles to lists of columns.")
            columns = {role: texts(f"the columns of {role}", names) for role, names in self.columns.items()}
            object.__setattr__(self, "columns", columns)


def texts(what: str, values: Any) -> list[str]:
    """The values as a list of texts, which paths are too."""
    if isinstance(values, str) or not all(isinstance(value, str | os.PathLike) for value in values):
        shown = values if isinstance(values, str) else list(values)
        raise InputError(f"{what} {shown!r} must be a list of texts.")
    return [os.fspath(value) for value in values]


@dataclass(frozen=True)
class DataConfig:
    """How a dataset becomes trajectories."""

    discount: float = option(1.0, "discount γ of the returns-to-go; 1 is the published Decision Transformer")
    delayed: bool = option(False, "move every reward to the end of its episode (the paper's delayed-reward setting)")
    short_episodes: str = option(
        "refuse",
        "episodes of 0 or 1 steps: refuse the dataset, skip them, or keep those of 1",
        ("refuse", "skip", "keep"),
    )
    min_return: float | None = option(None, "keep episodes that return at least this")
    max_return: float | None = option(None, "keep episodes that return at most this")
    min_length: int | None = option(None, "keep episodes of at least so many steps")
    max_length: int | None = option(None, "keep episodes of at most so many steps")
    endings: str = option(
        "all",
        "keep all episodes, those that the environment ended (terminated), or those that were cut (truncated)",
        ("all", "terminated", "truncated"),
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "min_length", "max_length")
        for what in ("return", "length"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if any(value is not None and math.isnan(value) for value in (low, high)):
                raise InputError(f"min_{what} {low} and max_{what} {high} must be numbers; leave one out for no bound.")
            if low is not None and high is not None and low > high:
                raise InputError(f"min_{what} {low} is above max_{what} {high}; no episode can have both.")
        if not 0 < self.discount <= 1:
            raise InputError(f"discount {self.discount} is outside (0, 1]; 1 means no discount.")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained. Saved with every policy, and all that is needed to build the same network again."""

    preset: str = option(
        "dt",
        "the method: dt (Decision Transformer), odt (the same with a stochastic action of bounded entropy), "
        "mgdt (draws a high return itself), dt_discrete (the same with binned action dimensions, one after the other), tt (Trajectory Transformer), "
        "vq_dt (codes of whole actions, and what they leave over), bc (behaviour cloning), filtered_bc (cloning the best episodes), "
        "rvs (cloning by an MLP that is told the return too)",
    )
    context_length: int = option(20, "steps the model looks back, K; 20 in the paper's MuJoCo experiments")
    chunk_length: int = option(
        1,
        "steps of a block, H: the model is asked every H steps for a chunk of H actions, and looks back on K such blocks",
    )
    attention: str | None = option(
        None,
        "what an action may depend on: the last K steps (window, as published, by default), the last K steps at every layer (banded, by default of tt), "
        "the whole episode (full)",
        ("window", "banded", "full"),
    )
    trunk: str = option("gpt2", "gpt2 (as published) or modern (RoPE, RMSNorm, SwiGLU)", ("gpt2", "modern"))
    width: int = option(128, "width of a token, D")
    layers: int = option(3, "transformer layers")
    heads: int = option(1, "attention heads; 1 in the paper's MuJoCo experiments")
    kv_heads: int | None = option(
        None, "key and value heads (grouped-query attention); as many as heads when not given"
    )
    activation: str = option("relu", "activation of the gpt2 trunk", ("relu", "gelu"))
    dropout: float = option(0.1, "dropout of embeddings, attention and residual branches")
    head: str = option(
        "auto",
        "distribution of the action: auto is deterministic for Box and categorical for Discrete",
        ("auto", "deterministic", "gaussian", "tanh_gaussian", "categorical"),
    )
    bins: int | None = option(
        None, "bins of a dimension, or codes; 256 for dt_discrete, 100 for tt and 16 for vq_dt when not given"
    )
    binning: str | None = option(
        None,
        "bins of equal width (uniform, by default of dt_discrete) or of equal counts (quantile, by default of tt); vq_dt has codes",
        ("uniform", "quantile", "codes"),
    )
    action_tokenizer: str | None = option(
        None,
        "dt_discrete: what makes ids of an action, or of a chunk of them, in place of bins: a name of `dtrl tokenizers report` "
        "(sequential is FAST)",
        (
            "uniform",
            "quantile",
            "mu_law",
            "k_means",
            "vector_quantization",
            "finite_scalar",
            "frequency",
            "sequential",
            "byte_pairs",
        ),
    )
    draft_head: bool = option(
        False, "dt_discrete: also train a head that guesses all tokens of an action at once, for --strategy speculative"
    )
    action_context: bool = option(True, "let the model see its earlier actions; off, it sees returns and observations")
    return_bins: int | None = option(None, "mgdt: values that the return can take; 120 when not given")
    image_encoder: str = option(
        "conv", "how images are embedded: conv (three convolutions) or patch (linear patches)", ("conv", "patch")
    )
    goal: str | None = option(
        None,
        "part of a Dict observation that gets a token of its own at the head of each step; by default desired_goal where there is one (none: no such token)",
    )
    timestep_embedding: bool | None = option(
        None, "add a learned embedding of the timestep; by default gpt2 does and modern does not"
    )
    max_timestep: int | None = option(
        None, "rows of the timestep table; by default the longest episode of the data or the env's limit"
    )
    return_scale: float | None = option(
        None,
        "the return token carries return-to-go / return_scale; by default half the standard deviation of the returns-to-go",
    )
    top_fraction: float = option(0.1, "filtered_bc: the share of episodes with the highest returns that is cloned")

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(
            self,
            "context_length",
            "chunk_length",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "max_timestep",
            "return_scale",
        )
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose a width that the heads divide."
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise InputError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose kv_heads that divides heads."
            )
        if self.trunk == "modern" and self.width // self.heads % 2:
            raise InputError(
                f"trunk modern turns the entries of a head in pairs, and width {self.width} gives each of the heads {self.heads} an odd number; "
                "choose a width that twice the heads divide."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} is outside [0, 1); 0 turns it off.")
        if not 0 < self.top_fraction <= 1:
            raise InputError(
                f"top_fraction {self.top_fraction} is outside (0, 1]; 0.1 clones the best tenth of the episodes."
            )

    @classmethod
    def saved(cls, document: Mapping[str, Any]) -> "ModelConfig":
        """The configuration in the document of a saved policy, which older versions wrote without `goal`, and with an `expectile` that was of the preset
        `reinformer` alone and is none of today's options."""
        options = {"goal": "", **document}
        options.pop("expectile", None)
        return cls(**options)


@dataclass(frozen=True)
class TrainingConfig:
    """How it is trained."""

    updates: int = option(10_000, "gradient updates in all")
    batch_size: int = option(64, "windows in one update, B")
    learning_rate: float = option(3e-3, "peak learning rate of AdamW; the paper uses 1e-4 over 100,000 updates")
    weight_decay: float = option(1e-4, "weight decay of AdamW")
    warmup_updates: int = option(100, "updates of linear warm-up; 10,000 in the paper, of 100,000")
    schedule: str = option(
        "constant",
        "learning rate after the warm-up: constant (as published) or cosine (to a tenth of the peak)",
        ("constant", "cosine"),
    )
    gradient_clip: float = option(0.25, "largest norm of the gradient")
    gradient_accumulation: int = option(
        1, "pieces in which one batch is computed, for less memory; the update stays the same"
    )
    sampling: str = option(
        "step",
        "how a window is drawn: every step alike as published (step), every episode alike (episode), steps by the rank of their episode's return (return)",
        ("step", "episode", "return"),
    )
    observation_noise: float = option(
        0.0,
        "deviation σ of Gaussian noise on the observations that the model sees, in deviations of the data's; 0 is off",
    )
    scheduled_sampling: float = option(
        0.0,
        "probability p with which an action that the model looks back on is its own and not the recorded one; 0 is off",
    )
    conservative: float = option(
        0.0,
        "weight α of the loss on the best episodes with returns raised beyond the data's maximum, so that asking for more is safe; 1 in the paper, 0 is off",
    )
    precision: str = option(
        "fp32",
        "fp32, tf32 (on NVIDIA GPUs: matrix products rounded to 10 bits of mantissa) or bf16 (autocast)",
        ("fp32", "tf32", "bf16"),
    )
    compile: bool = option(False, "compile the model with torch.compile (needs a C++ compiler; pays on long runs)")
    data_on_device: str = option(
        "auto",
        "keep the dataset on the device and cut its windows there: auto (on CUDA, where it takes at most half of the free memory), always or never",
        ("auto", "always", "never"),
    )
    cuda_graph: bool = option(
        False, "replay the whole update as one CUDA graph; losses are then checked only when they are logged"
    )
    fsdp: bool = option(
        False,
        "of several processes: share out parameters, gradients and AdamW's moments among them (FSDP2), for a model that is too large for each",
    )
    device: str = option("auto", "auto (CUDA, then MPS, then CPU), or a torch device such as cpu or cuda:0")
    seed: int = option(0, "seed of the initial weights, the batches and the dropout")
    holdout: float = option(
        0.0,
        "share of the episodes that training leaves out; action error and log-likelihood on them are logged as val/…",
    )
    log_every: int = option(50, "updates between two log entries")
    checkpoint_every: int = option(
        1_000, "updates between two checkpoints; one is always written at the end, and when SIGUSR1 comes"
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep")

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(
            self,
            "updates",
            "batch_size",
            "learning_rate",
            "gradient_clip",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        )
        if self.batch_size % self.gradient_accumulation:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation {self.gradient_accumulation}; choose pieces of equal size."
            )
        if not 0 <= self.scheduled_sampling <= 1:
            raise InputError(f"scheduled_sampling {self.scheduled_sampling} is outside [0, 1]; 0 turns it off.")
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout {self.holdout} is outside [0, 1); 0.1 holds out a tenth of the episodes.")
        if self.cuda_graph and self.data_on_device == "never":
            raise InputError("cuda_graph does not go with data_on_device never; choose one of the two.")
        for name in ("weight_decay", "warmup_updates", "seed", "observation_noise", "conservative"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} {value} must be 0 or a positive number.")


@dataclass(frozen=True)
class OnlineConfig:
    """How a trained policy plays while it is fine-tuned, and what it learns from."""

    explore_return: float | None = option(
        None,
        "return that is asked of the episodes that are played; by default as far beyond the best of the data as that is beyond their median",
    )
    round_episodes: int = option(16, "episodes that are played in a round, side by side; 1 as published")
    round_updates: int = option(100, "updates after each round; 300 as published")
    buffer_episodes: int = option(
        300,
        "episodes to learn from: at first the best of the data; as new ones are played, the oldest leave; 1,000 as published",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "round_episodes", "round_updates", "buffer_episodes")
        if self.explore_return is not None and not math.isfinite(self.explore_return):
            raise InputError(
                f"explore_return {self.explore_return} is not finite; ask for a return somewhat above the best of the data."
            )


ONLINE_TRAINING: dict[str, Any] = {"updates": 3_000, "learning_rate": 3e-4}
"""Training settings of which fine-tuning has other defaults."""


CUTS = ("top_k", "top_p", "min_p", "typical_p")
"""Options that shorten a list of tokens."""
HISTORY = ("repetition_penalty", "no_repeat_ngram")
"""Options that look at the tokens so far."""
PAIRED = ("guidance", "contrast")
"""Options that compare two conditions of a model."""
DRAFTS = ("factorised", "ngram")
"""What guesses ahead without a model of its own; every other draft is the path of one."""
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "greedy": ("takes the mode", ()),
    "sample": ("draws from the distribution", ("temperature", *CUTS)),
    "beam": ("keeps the most probable sequences", ("beam_width", "length_penalty")),
    "contrastive": ("takes the best of the top_k candidates", ("top_k", "contrastive_alpha")),
    "speculative": ("draws from the distribution by a draft", ("temperature", *CUTS, "draft", "draft_tokens")),
    "plan": (
        "keeps the sampled plans of the highest return",
        ("temperature", *CUTS, "beam_width", "horizon", "expansions"),
    ),
    "best_of": ("takes the action of several that a critic values most", ("temperature", *CUTS, "critic", "samples")),
}
"""Strategy → what it does, and the options that it has a use for beside HISTORY and PAIRED, which go with all."""


@dataclass(frozen=True)
class CriticConfig:
    """What says how much an action is worth, by implicit Q-learning [Kostrikov et al. 2021, arXiv:2110.06169], with its published settings but for fewer
    updates."""

    updates: int = option(10_000, "gradient updates; a million in the paper")
    batch_size: int = option(256, "steps of an update")
    learning_rate: float = option(3e-4, "of Adam")
    width: int = option(256, "units of each of the two hidden layers")
    expectile: float = option(
        0.7, "of the actions in the data, whose value a state has: 0.5 is their mean, near 1 the best"
    )
    discount: float = option(0.99, "γ, by which a later reward counts less")
    seed: int = option(0, "seed of the initial weights and the batches")
    device: str = option("auto", "auto (CUDA, then MPS, then CPU), or a torch device such as cpu or cuda:0")

    def __post_init__(self) -> None:
        check_positive(self, "updates", "batch_size", "learning_rate", "width")
        if not 0 < self.expectile < 1:
            raise InputError(
                f"expectile {self.expectile} is outside (0, 1); 0.7 is usual, and 0.9 where the best counts."
            )
        if not 0 <= self.discount < 1:
            raise InputError(f"discount {self.discount} is outside [0, 1); 0.99 is usual.")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; choose 0 or more.")


@dataclass(frozen=True)
class DecodingConfig:
    """How tokens are chosen from the model's distributions. The filters apply in the order of the fields."""

    strategy: str = option(
        "greedy",
        "greedy (the mode), sample, or best_of (what a critic values most); where an action is several tokens also beam (the most probable sequence), "
        "contrastive (search against repetition), speculative (sample, drafted) and plan (the highest return)",
        tuple(STRATEGIES),
    )
    temperature: float = option(1.0, "divides the logits, or multiplies the standard deviation; 0 is greedy")
    top_k: int = option(0, "keep the k most probable actions; 0 keeps all, or 4 candidates of contrastive")
    top_p: float = option(1.0, "keep the fewest actions whose probability reaches p; 1 keeps all")
    min_p: float = option(0.0, "keep actions at least min_p times as probable as the best; 0 keeps all")
    typical_p: float = option(
        1.0, "keep the fewest actions nearest to the expected surprise whose probability reaches p; 1 keeps all"
    )
    repetition_penalty: float = option(
        1.0, "multiply the log-probability of tokens that were there before; 1 changes nothing"
    )
    no_repeat_ngram: int = option(0, "take no token that would repeat so many in a row; 0 allows all")
    guidance: float = option(
        1.0, "γ: from the distribution without the wanted return (0) to the one with it (1) and beyond"
    )
    contrast: float = option(
        0.0, "β: subtract β times the log-probabilities without the wanted return (contrastive decoding); 0 is off"
    )
    plausible_p: float = option(
        0.1, "with guidance or contrast: keep tokens at least so many times as probable as the best with the return"
    )
    clip_return: bool = option(
        False, "lower a return-to-go to the highest that the data have at that timestep, and go on from there"
    )
    return_tilt: float = option(
        10.0, "mgdt: κ, how much the return that the model draws leans to high ones; 0 draws as the data do"
    )
    beam_width: int = option(32, "sequences that beam and plan keep")
    length_penalty: float = option(
        0.0, "beam: a finished sequence's log-probability is divided by its length to this power"
    )
    contrastive_alpha: float = option(
        0.6, "contrastive: weight of the likeness to what came before, against probability"
    )
    draft: str = option(
        "factorised",
        "speculative: what guesses ahead, a head for all tokens at once (factorised), what followed the same tokens before (ngram), or a smaller policy "
        "of the same tokens (its run directory or file)",
    )
    draft_tokens: int = option(4, "speculative: tokens guessed ahead, γ")
    execute: int | None = option(
        None,
        "of a chunk, how many actions are executed before the model is asked again; all by default, and fewer only for presets without a past "
        "(bc, filtered_bc, rvs)",
    )
    horizon: int = option(15, "plan: steps looked ahead; 15 in the paper")
    expansions: int = option(2, "plan: continuations sampled of each plan; 2 in the paper")
    critic: str = option("", "best_of: the file of a critic, which `dtrl critic` makes")
    samples: int = option(10, "best_of: actions drawn, which are compared with each other and with the mode")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise InputError(f"temperature {self.temperature} must be 0 (greedy) or a positive number.")
        for name, what in (("top_k", "number of actions"), ("no_repeat_ngram", "number of tokens")):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} must be 0 (off) or a positive {what}.")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)} is outside (0, 1]; 1 keeps all actions.")
        for name in ("min_p", "plausible_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)} is outside [0, 1]; 0 keeps all actions.")
        if not 0 <= self.contrastive_alpha <= 1:
            raise InputError(f"contrastive_alpha {self.contrastive_alpha} is outside [0, 1]; 0 is greedy.")
        if not self.draft:
            raise InputError(
                f"draft {self.draft!r} is empty; choose {', '.join(DRAFTS)}, or the run directory of a policy."
            )
        check_positive(
            self, "repetition_penalty", "execute", "beam_width", "draft_tokens", "horizon", "expansions", "samples"
        )
        for name, off in (("guidance", 1), ("contrast", 0)):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name} {getattr(self, name)} must be a number from 0 up; {off} is off.")
        if not math.isfinite(self.return_tilt):
            raise InputError(f"return_tilt {self.return_tilt} must be a finite number; 10 is usual, and 0 is off.")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty {self.length_penalty} must be a finite number; 0 ranks by probability.")
        self._check_combination()

    def _check_combination(self) -> None:
        """Refuse options that the strategy would not look at."""
        does, uses = STRATEGIES[self.strategy]
        free = ("strategy", "plausible_p", "return_tilt", "clip_return", "execute", *HISTORY, *PAIRED)
        asked = [name for name in self.changed if name not in free]
        if self.strategy == "greedy" and self.temperature == 0:
            asked.remove("temperature")
        useless = [name for name in asked if name not in uses]
        if useless:
            fitting = [name for name, (_, known) in STRATEGIES.items() if set(useless) <= set(known)]
            instead = f"add --strategy {' or '.join(fitting)}, or leave it out" if fitting else "leave them out"
            goes_with = f"; {self.strategy} goes with {', '.join(uses)}" if uses else ""
            raise InputError(
                f"strategy {self.strategy} {does} and has no use for {', '.join(useless)}; {instead}{goes_with}."
            )
        if self.strategy == "best_of" and not self.critic:
            raise InputError(
                "strategy best_of needs a critic; make one with `dtrl critic DATASET --output FILE`, and name it by --critic."
            )
        if self.strategy == "best_of" and (other := [name for name in (*HISTORY, *PAIRED) if name in self.changed]):
            raise InputError(
                f"strategy best_of compares whole actions, and {', '.join(other)} shape single tokens; choose one of them."
            )
        if self.guidance != 1 and self.contrast:
            raise InputError(
                f"guidance {self.guidance} and contrast {self.contrast} both compare the model with itself; choose one of the two."
            )
        if self.clip_return and self.paired:
            raise InputError(
                "clip_return changes the return that guidance and contrast compare with; choose one of them."
            )
        if "plausible_p" in self.changed and not self.paired:
            raise InputError(
                f"plausible_p {self.plausible_p} goes with guidance or contrast; add one, or leave it out."
            )

    @cached_property
    def changed(self) -> list[str]:
        """Names of the options that are not as they are by default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    @property
    def greedy(self) -> bool:
        return self.strategy == "greedy" or self.temperature == 0

    @property
    def paired(self) -> bool:
        """Whether the model is asked twice, with the wanted return and without."""
        return self.guidance != 1 or self.contrast != 0

    @cached_property
    def at_once(self) -> bool:
        """Whether each token is chosen by its own distribution alone."""
        return self.strategy in ("greedy", "sample", "best_of") and not self.looks_back and not self.paired

    @cached_property
    def looks_back(self) -> bool:
        """Whether what may come depends on the tokens so far."""
        return any(name in self.changed for name in HISTORY)

    @property
    def draft_path(self) -> str | None:
        """Where the model lies that guesses ahead, if it is one."""
        return self.draft if self.strategy == "speculative" and self.draft not in DRAFTS else None

    @property
    def candidates(self) -> int:
        """Tokens that contrastive search compares."""
        return self.top_k or 4

    @property
    def cuts(self) -> list[str]:
        """Those of the filters that shorten a list of tokens, where they are on."""
        return [name for name in CUTS if name in self.changed]

    def refuse_cuts(self) -> None:
        """Raise InputError where tokens would be cut: for a policy whose actions are all continuous."""
        if self.cuts:
            raise InputError(
                f"{', '.join(self.cuts)} cut a list of tokens, and this policy's actions are continuous; use --temperature, or a categorical head."
            )

    def refuse_critic(self) -> None:
        """Raise InputError where a critic is to choose: for a policy that PyTorch does not run, or of another library."""
        if self.strategy == "best_of":
            raise InputError(
                "strategy best_of needs dtrl's own policy, run by PyTorch (engine eager); choose greedy or sample."
            )

    def refuse_tilt(self, preset: str) -> None:
        """Raise InputError where a tilt is asked for: for a policy that draws no return."""
        if "return_tilt" in self.changed:
            raise InputError(
                f"return_tilt goes with policies of preset mgdt, which draw a return, and {preset} draws none; leave it out."
            )

    def refuse_execute(self) -> None:
        """Raise InputError where a number of actions of a chunk is given: for a policy that chooses one action a step."""
        if self.execute is not None:
            raise InputError(
                f"execute {self.execute} is for policies that decide chunks of actions (--chunk-length), and this one decides one a step; leave it out."
            )

    def refuse_masks(self) -> None:
        """Raise InputError: for an environment that forbids actions."""
        raise InputError(
            f"action masks go with strategy greedy or sample without guidance and history, not with {self.strategy}; choose those for this environment."
        )

    def refuse_sequences(self) -> None:
        """Raise InputError for what needs several tokens of an action, one after the other: for a policy that chooses each action at once."""
        if self.at_once:
            return
        if self.strategy not in ("greedy", "sample", "best_of"):
            raise InputError(
                f"strategy {self.strategy} needs a model of discrete tokens such as preset tt or dt_discrete; this policy goes with greedy or sample."
            )
        if needless := [name for name in (*HISTORY, *PAIRED) if name in self.changed]:
            raise InputError(
                f"{', '.join(needless)} needs a model of discrete tokens such as preset tt or dt_discrete; leave it out for this policy."
            )


Config = TypeVar("Config", DataConfig, ModelConfig, TrainingConfig, OnlineConfig, DecodingConfig)


LARGEST = 2**1000
"""Whole numbers from here on are no floats, and comparing them fails."""


def check_choices(config: Any) -> None:
    """Refuse a value that its field does not list, and one of the wrong type, by name."""
    for f in fields(config):
        value, choices = getattr(config, f.name), f.metadata.get("choices")
        if choices and value not in choices and not (value is None and f.default is None):
            raise InputError(
                f"{f.name} {value!r} is unknown: {did_you_mean(str(value), choices)} (one of {', '.join(choices)})."
            )
        if value is None and f.default is None:
            continue
        wanted = plain_type(f)
        if type(value) is int and abs(value) >= LARGEST:
            raise InputError(f"{f.name} has hundreds of digits; give a smaller number.")
        if wanted is float and type(value) is int:
            object.__setattr__(config, f.name, float(value))
        elif type(value) is not wanted:
            raise InputError(f"{f.name} {value!r} is a {type(value).__name__}; a {wanted.__name__} is expected.")


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} {value} must be a positive number.")


def plain_type(f: "dataclasses.Field[Any]") -> type:
    """The type of an option that is not None: `int` for `int | None`."""
    kinds: list[type] = [
        t for t in getattr(f.type, "__args__", (f.type,)) if isinstance(t, type) and t is not type(None)
    ]
    return kinds[0]


def split_options(options: dict[str, Any], *parts: type) -> list[dict[str, Any]]:
    """Share out named options among the dataclasses that have them; an unknown name is an error that suggests the nearest."""
    known = {f.name: i for i, part in enumerate(parts) for f in fields(part)}
    shares: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in options.items():
        if name not in known:
            raise InputError(f"there is no option {name!r}; {did_you_mean(name, sorted(known))}")
        shares[known[name]][name] = value
    return shares
