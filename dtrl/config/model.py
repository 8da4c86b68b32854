"""What is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrl.config.options import check_choices, check_positive, option
from dtrl.errors import InputError


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
