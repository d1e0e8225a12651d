"""Trees, linear models and pipelines from disk: scikit-learn, XGBoost, LightGBM.

XGBoost's JSON and UBJ, LightGBM's text and skops files hold no code. A pickle does, so it needs `trust_pickle`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from cluster.errors import ConversionFailed
from converters.formats import Format
from converters.onnx.failures import brief

MAX_MODEL_BYTES = 8 << 30
PICKLES = (".pkl", ".pickle", ".joblib")

# What a skops file may hold beside what skops trusts itself: what fitted models are made of. Each name is a class that
# keeps numbers, or a function of numbers; none takes the name of a file or of something to call.
TRUSTED = frozenset(
    f"{module}.{name}"
    for module, names in {
        "collections": ("OrderedDict",),
        "numpy": ("dtype",),
        "xgboost.core": ("Booster",),
        "xgboost.sklearn": ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor"),
        "lightgbm.basic": ("Booster",),
        "lightgbm.sklearn": ("LGBMClassifier", "LGBMRegressor"),
        "sklearn.tree._tree": ("Tree",),
        "sklearn.ensemble._hist_gradient_boosting.predictor": ("TreePredictor",),
        "sklearn._loss.loss": ("HalfTweedieLoss", "HalfTweedieLossIdentity"),
        "sklearn.calibration": ("_CalibratedClassifier", "_SigmoidCalibration"),
        "sklearn.feature_selection._univariate_selection": ("f_classif", "f_regression", "chi2"),
        "sklearn.gaussian_process._gpc": ("_BinaryGaussianProcessClassifierLaplace",),
        "sklearn.gaussian_process.kernels": ("ConstantKernel", "Matern", "Product", "RBF", "Sum", "WhiteKernel"),
        "sklearn.metrics._dist_metrics": ("EuclideanDistance64", "ManhattanDistance64", "MinkowskiDistance64"),
        "sklearn.neighbors._ball_tree": ("BallTree",),
        "sklearn.neighbors._kd_tree": ("KDTree",),
        "sklearn.neural_network._stochastic_optimizers": ("AdamOptimizer", "SGDOptimizer"),
    }.items()
    for name in names
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
        told = brief(error).partition(" Stack trace:")[0]  # XGBoost's end with one
        raise ConversionFailed(f"{path.name}: it cannot be loaded: {type(error).__name__}: {told}") from None


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
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _filled(model: Any, path: Path) -> Any:
    model.load_model(path)
    return model


def _lightgbm(path: Path) -> Any:
    import lightgbm

    return lightgbm.Booster(model_file=str(path))


def _skops(path: Path) -> Any:
    import skops.io

    _check_sizes(path)
    named = skops.io.get_untrusted_types(file=path)
    unknown = [name for name in named if name not in TRUSTED]
    if unknown:
        raise ConversionFailed(f"{path.name}: it holds {_few(unknown)}, which could run code")
    return skops.io.load(path, trusted=named)


def _check_sizes(path: Path) -> None:
    """Raises: ConversionFailed if the archive, with the archives of sparse arrays in it, unpacks to too much."""
    with ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        for member in archive.infolist():
            if member.filename.endswith(".npz") and size <= MAX_MODEL_BYTES:
                with archive.open(member) as stream, ZipFile(stream) as arrays:
                    size += sum(array.file_size for array in arrays.infolist())
    if size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{path.name}: it unpacks to more than {MAX_MODEL_BYTES} bytes")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pickle(path: Path) -> Any:
    import joblib

    return joblib.load(path)  # reads plain pickles too
