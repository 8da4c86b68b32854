"""A policy as the document that stands beside its parameters in a file, and what a file says of one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dtrl
from dtrl.acting.artefact import load_artefact, undescribed
from dtrl.acting.rebuilding import rebuild
from dtrl.acting.summary import DataSummary
from dtrl.config import ModelConfig
from dtrl.errors import InputError
from dtrl.presets import build
from dtrl.spaces import check_space, space_from_json, space_to_json

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy


def document_of(policy: "Policy") -> dict[str, Any]:
    """All but the parameters, as JSON values."""
    return {
        "dtrl": dtrl.__version__,
        "model": asdict(policy.config),
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "data": asdict(policy.data),
        "updates": policy.updates,
        "target_return": policy.target_return,
    }


def read_policy(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a policy's file, and the arguments of `Policy` that it describes. Raises InputError for any other file."""
    tensors, document = load_artefact(path)
    if "critic" in document and "model" not in document:
        raise InputError(
            f"{path} is a critic and no policy; give it to `dtrl evaluate RUN --strategy best_of` by --critic."
        )
    try:
        config = ModelConfig.saved(document["model"])
        summary = DataSummary.from_json(document["data"])
        seen, acted = space_from_json(document["observation_space"]), space_from_json(document["action_space"])
        check_space(seen, "observation", str(path))
        check_space(acted, "action", str(path))
        return document, {
            "model": rebuild(config, seen, acted, tensors, lambda: build(config, seen, acted)),
            "config": config,
            "observation_space": seen,
            "action_space": acted,
            "data": summary,
            "updates": int(document["updates"]),
            "target_return": float(document["target_return"]),
        }
    except Exception as error:
        raise undescribed(path, document, "policy", error) from error
