"""How a policy chooses tokens when it acts."""

import math
from dataclasses import dataclass, fields
from functools import cached_property

from dtrl.config.options import check_choices, check_positive, option
from dtrl.errors import InputError

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
