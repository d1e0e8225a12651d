"""What a skops file may hold."""

import zipfile

import numpy as np
import pytest

from cluster.errors import ConversionFailed
from converters.classic import source as classic_source
from converters.classic.source import load
from converters.formats import Format

skops_io = pytest.importorskip("skops.io")
lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")

from scipy.sparse import csr_matrix  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier  # noqa: E402
from sklearn.feature_selection import SelectKBest  # noqa: E402
from sklearn.gaussian_process import GaussianProcessRegressor  # noqa: E402
from sklearn.gaussian_process.kernels import RBF, WhiteKernel  # noqa: E402
from sklearn.linear_model import LogisticRegression, TweedieRegressor  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, StandardScaler  # noqa: E402

X, Y = load_iris(return_X_y=True)

MODELS = {
    "lightgbm": lambda: lightgbm.LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1),
    "lightgbm regressor": lambda: lightgbm.LGBMRegressor(n_estimators=2, verbose=-1, n_jobs=1),
    "xgboost": lambda: make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=2, n_jobs=1)),
    "xgboost forest": lambda: xgboost.XGBRFRegressor(n_estimators=2, n_jobs=1),
    "boosting": lambda: GradientBoostingRegressor(n_estimators=2),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=2),
    "neighbours": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier()),
    "balls": lambda: KNeighborsClassifier(algorithm="ball_tree", p=1),
    "network": lambda: MLPClassifier((4,), max_iter=500, random_state=0),
    "calibrated": lambda: CalibratedClassifierCV(LogisticRegression(max_iter=500), cv=2),
    "selected": lambda: make_pipeline(SelectKBest(k=2), KBinsDiscretizer(3), LogisticRegression(max_iter=500)),
    "process": lambda: GaussianProcessRegressor(RBF() + WhiteKernel()),
    "tweedie": lambda: TweedieRegressor(power=0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_what_fitted_models_are_made_of_is_loaded(tmp_path, name):
    model = MODELS[name]().fit(X, Y)
    skops_io.dump(model, tmp_path / "m.skops")
    found = load(tmp_path / "m.skops", Format.SKLEARN, trust_pickle=False)
    np.testing.assert_array_equal(found.predict(X), model.predict(X))


@pytest.mark.parametrize(
    "part",
    [
        lightgbm.train,
        xgboost.train,
        lightgbm.basic.Dataset(X),
        xgboost.callback.TrainingCheckPoint("elsewhere"),
        np.fromfile,
        np.load,
        eval,
        KNeighborsClassifier.fit,
    ],
    ids=lambda part: getattr(part, "__name__", type(part).__name__),
)
def test_what_else_the_same_libraries_have_is_refused(tmp_path, part):
    model = make_pipeline(FunctionTransformer(), LogisticRegression(max_iter=500)).fit(X, Y)
    model[0].func = part
    skops_io.dump(model, tmp_path / "m.skops")
    with pytest.raises(ConversionFailed, match="which could run code"):
        load(tmp_path / "m.skops", Format.SKLEARN, trust_pickle=False)


def test_everything_trusted_has_its_whole_name():
    for name in classic_source.TRUSTED:
        module, _, attribute = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    model = LogisticRegression(max_iter=500).fit(X, Y)
    model.sparse_ = csr_matrix((4, 200_000), dtype="f8")  # an archive inside of the archive, of zeros
    model.sparse_.indptr = np.zeros(200_000, "i4")
    skops_io.dump(model, tmp_path / "m.skops")
    with zipfile.ZipFile(tmp_path / "m.skops") as archive:
        outer = sum(member.file_size for member in archive.infolist())
    monkeypatch.setattr(classic_source, "MAX_MODEL_BYTES", outer + 1000)
    with pytest.raises(ConversionFailed, match=r"m\.skops: it unpacks to more than"):
        load(tmp_path / "m.skops", Format.SKLEARN, trust_pickle=False)
