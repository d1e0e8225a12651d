"""Trees, linear models and pipelines from disk: scikit-learn, XGBoost, LightGBM.

XGBoost's JSON and UBJ, LightGBM's text and skops files hold no code. A pickle does, so it needs `trust_pickle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConversionFailed
from converters.formats import Format
from converters.onnx_failures import brief

MAX_MODEL_BYTES = 8 << 30
PICKLES = (".pkl", ".pickle", ".joblib")

# What a skops file may hold beside what skops trusts itself: fitted trees, and the other two libraries' models.
_TRUSTED = (
    "sklearn.tree._tree.",
    "sklearn.ensemble._hist_gradient_boosting.",
    "xgboost.",
    "lightgbm.",
    "collections.OrderedDict",
)


def load(path: Path, kind: Format, trust_pickle: bool) -> Any:
    """The fitted model in a file. Raises: ConversionFailed if it is damaged, or could run code and is not trusted."""
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{path.name}: {path.stat().st_size} bytes, at most {MAX_MODEL_BYTES} are read")
    if path.suffix.lower() in PICKLES and not trust_pickle:
        raise ConversionFailed(
            f"{path.name}: a pickle, which runs what its author put in. Save with skops.io.dump (.skops), XGBoost's "
            "save_model (.json, .ubj) or LightGBM's save_model (.txt); --trust-pickle loads it all the same"
        )
    try:
        if kind == Format.XGBOOST:
            return _xgboost(path)
        if kind == Format.LIGHTGBM:
            return _lightgbm(path)
        return _skops(path) if path.suffix.lower() == ".skops" else _pickle(path)
    except ConversionFailed:
        raise
    except Exception as error:  # each library has errors of its own
        raise ConversionFailed(f"{path.name}: it cannot be loaded: {type(error).__name__}: {brief(error)}") from None


def _xgboost(path: Path) -> Any:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(path)
    objective = booster_objective(booster)
    if objective.startswith(("binary:", "multi:")):
        return _filled(xgboost.XGBClassifier(), path)
    if objective.startswith(("rank:", "survival:")):
        raise ConversionFailed(f"{path.name}: objective {objective} has no ONNX form here")
    return _filled(xgboost.XGBRegressor(), path)


def booster_objective(booster: Any) -> str:
    """What an XGBoost model was trained for, such as `binary:logistic`."""
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _filled(model: Any, path: Path) -> Any:
    model.load_model(path)
    return model


def _lightgbm(path: Path) -> Any:
    import lightgbm

    return lightgbm.Booster(model_file=str(path))


def _skops(path: Path) -> Any:
    import skops.io

    unknown = [name for name in skops.io.get_untrusted_types(file=path) if not name.startswith(_TRUSTED)]
    if unknown:
        raise ConversionFailed(f"{path.name}: it holds {_few(unknown)}, which could run code")
    return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pickle(path: Path) -> Any:
    import joblib

    return joblib.load(path)  # reads plain pickles too
