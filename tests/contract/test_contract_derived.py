"""What keeping derived files owes, wherever the artifact store is: a folder, or behind a URL."""

import logging
import multiprocessing
import uuid
from pathlib import Path

import fsspec
import pytest

from cluster import derived
from cluster.derived import INDEX, DerivedFiles, name_of
from cluster.errors import EngineFailed, InvalidRequest, StoreUnavailable

DIGEST = "a" * 64
KEY = {"gpu": "Tesla T4", "capability": "7.5", "tensorrt": "11.4.0"}


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def files(url, tmp_path):
    return DerivedFiles(url, tmp_path / "cache")


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"an engine")
    (folder / "sub" / "timing").write_bytes(b"timings")
    return folder


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def elsewhere(url, tmp_path):
    """Another machine with the same store."""
    return DerivedFiles(url, tmp_path / "another-cache")


def never(folder):
    raise AssertionError("it was there already")


def write(content):
    return lambda folder: (folder / "model.engine").write_bytes(content)


def test_what_was_put_is_fetched_on_every_machine(files, url, tmp_path, made):
    assert files.fetch(DIGEST, KEY) is None
    put = files.put(DIGEST, KEY, made)
    for machine in (files, elsewhere(url, tmp_path)):
        found = contents(machine.fetch(DIGEST, KEY))
        assert found.pop(INDEX)
        assert found == contents(made)
    assert files.fetch(DIGEST, KEY) == put


def test_another_artifact_or_another_gpu_has_other_files(files, made):
    files.put(DIGEST, KEY, made)
    assert files.fetch("b" * 64, KEY) is None
    assert files.fetch(DIGEST, {**KEY, "capability": "8.9"}) is None
    assert files.fetch(DIGEST, dict(reversed(KEY.items()))) is not None


def test_an_entry_moved_to_another_key_is_not_believed(files, url, tmp_path, made):
    folder = files.put(DIGEST, KEY, made)
    other = {**KEY, "gpu": "another"}
    folder.rename(folder.with_name(name_of(other)))
    assert files.fetch(DIGEST, other) is None


def test_the_first_writer_wins(files, url, tmp_path, made):
    files.put(DIGEST, KEY, made)
    (made / "model.engine").write_bytes(b"a later engine")
    files.put(DIGEST, KEY, made)
    second = elsewhere(url, tmp_path)
    second.put(DIGEST, KEY, made)
    assert contents(elsewhere(url, tmp_path / "third").fetch(DIGEST, KEY))["model.engine"] == b"an engine"


def test_two_writers_who_both_saw_nothing_leave_one_whole_entry(files, url, tmp_path, made, monkeypatch):
    files.put(DIGEST, KEY, made)
    (made / "model.engine").write_bytes(b"a later engine")
    with monkeypatch.context() as patch:
        patch.setattr(derived, "_read_index", lambda uri: None)
        elsewhere(url, tmp_path).put(DIGEST, KEY, made)
    found = contents(elsewhere(url, tmp_path / "third").fetch(DIGEST, KEY))
    assert found["model.engine"] in (b"an engine", b"a later engine") and found["sub/timing"] == b"timings"


def test_a_damaged_entry_is_made_again(files, url, tmp_path, made):
    put = files.put(DIGEST, KEY, made)
    (put / "model.engine").write_bytes(b"an engin3")
    if url.startswith("memory"):
        fs = fsspec.filesystem("memory")
        for path in fs.find(url.removeprefix("memory:/")):
            if not path.endswith(INDEX):
                fs.pipe_file(path, b"?")
    assert files.fetch(DIGEST, KEY) is None
    with files.obtain(DIGEST, KEY, write(b"made again")) as folder:
        assert (folder / "model.engine").read_bytes() == b"made again"
    for machine in (files, elsewhere(url, tmp_path)):
        with machine.obtain(DIGEST, KEY, never) as folder:
            assert (folder / "model.engine").read_bytes() == b"made again"


@pytest.mark.parametrize("index", [b"{", b'{"artifact": "", "key": {}, "files": {}}', b"[]"])
def test_an_index_that_says_nothing_of_use_counts_as_no_entry(files, url, tmp_path, made, index):
    put = files.put(DIGEST, KEY, made)
    (put / INDEX).write_bytes(index)
    if url.startswith("memory"):
        fsspec.filesystem("memory").pipe_file(f"{url}/derived/{DIGEST}/{name_of(KEY)}/{INDEX}", index)
    assert files.fetch(DIGEST, KEY) is None
    files.put(DIGEST, KEY, made)
    assert elsewhere(url, tmp_path).fetch(DIGEST, KEY) is not None


@pytest.mark.parametrize("name", ["../model.engine", "/model.engine", "model\\u0000.engine"])
def test_an_index_that_leads_out_of_its_folder_is_not_followed(files, made, tmp_path, name):
    put = files.put(DIGEST, KEY, made)
    text = (put / INDEX).read_text()
    assert '"model.engine"' in text
    (put / INDEX).write_text(text.replace('"model.engine"', f'"{name}"'))
    (put / "model.engine").rename(put.parent / "model.engine")
    assert DerivedFiles(str(tmp_path / "store"), tmp_path / "cache").fetch(DIGEST, KEY) is None


def test_files_are_made_once_and_the_time_is_counted(files, url, tmp_path):
    with files.obtain(DIGEST, KEY, write(b"1")) as folder:
        assert (folder / "model.engine").read_bytes() == b"1"
    assert files.spent_s > 0
    later = DerivedFiles(url, tmp_path / "cache")
    with later.obtain(DIGEST, KEY, never) as folder:
        assert (folder / "model.engine").read_bytes() == b"1"
    assert later.spent_s == 0


def test_what_fails_to_be_made_fails_and_leaves_nothing(files):
    def fail(folder):
        (folder / "half").write_text("?")
        raise EngineFailed("no kernel")

    with pytest.raises(EngineFailed, match="no kernel"), files.obtain(DIGEST, KEY, fail):
        pass
    assert files.fetch(DIGEST, KEY) is None


def test_removing_takes_all_of_an_artifact_and_nothing_of_another(files, url, tmp_path, made):
    for digest in (DIGEST, "b" * 64):
        for gpu in ("one", "two"):
            files.put(digest, {"gpu": gpu}, made)
    files.remove(DIGEST)
    for machine in (files, elsewhere(url, tmp_path)):
        assert machine.fetch(DIGEST, {"gpu": "one"}) is None
        assert machine.fetch("b" * 64, {"gpu": "two"}) is not None
    files.remove(DIGEST)


def test_what_is_of_no_use_is_discarded_everywhere(files, url, tmp_path, made):
    files.put(DIGEST, KEY, made)
    files.put(DIGEST, {"gpu": "other"}, made)
    files.discard(DIGEST, KEY)
    assert files.fetch(DIGEST, KEY) is None and elsewhere(url, tmp_path).fetch(DIGEST, KEY) is None
    assert files.fetch(DIGEST, {"gpu": "other"}) is not None


def test_a_store_that_cannot_be_written_is_a_warning_and_the_cache_stands_in(tmp_path, made, caplog):
    (tmp_path / "file").write_text("")
    files = DerivedFiles(str(tmp_path / "file" / "store"), tmp_path / "cache")
    with pytest.raises(StoreUnavailable):
        files.put("b" * 64, KEY, made)
    with caplog.at_level(logging.WARNING), files.obtain(DIGEST, KEY, write(b"1")) as folder:
        assert (folder / "model.engine").read_bytes() == b"1"
    assert "cannot be kept" in caplog.text
    with files.obtain(DIGEST, KEY, never) as folder:
        assert folder.is_relative_to(tmp_path / "cache")


def test_nowhere_to_write_still_gives_the_files_for_now(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    files = DerivedFiles(str(tmp_path / "file" / "store"), tmp_path / "file" / "cache")
    with files.obtain(DIGEST, KEY, write(b"1")) as folder:
        assert (folder / "model.engine").read_bytes() == b"1"
    assert not folder.exists()
    assert "without a lock" in caplog.text and "cannot be kept" in caplog.text


def test_a_digest_cannot_leave_the_store(files, made):
    for act in (
        lambda: files.fetch("../x", KEY),
        lambda: files.put("../x", KEY, made),
        lambda: files.remove(".."),
        lambda: files.discard("", KEY),
    ):
        with pytest.raises(InvalidRequest, match="digest"):
            act()


def _obtain(store: str, cache: str, log: str) -> None:
    def make(folder: Path) -> None:
        with Path(log).open("a") as file:
            file.write("made\n")
        (folder / "model.engine").write_bytes(b"x" * 4_000_000)

    with DerivedFiles(store, Path(cache)).obtain(DIGEST, KEY, make) as folder:
        if (folder / "model.engine").stat().st_size != 4_000_000:
            raise SystemExit(1)


def test_of_several_processes_on_a_machine_one_makes_them(tmp_path):
    context = multiprocessing.get_context("fork")
    places = (str(tmp_path / "store"), str(tmp_path / "cache"), str(tmp_path / "log"))
    processes = [context.Process(target=_obtain, args=places) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "made\n"


def test_several_machines_that_make_them_at_once_do_not_mix_them(tmp_path):
    context = multiprocessing.get_context("fork")
    store = str(tmp_path / "store")
    processes = [
        context.Process(target=_obtain, args=(store, str(tmp_path / f"cache-{i}"), str(tmp_path / f"log-{i}")))
        for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 3
    entry = DerivedFiles(store, tmp_path / "cache-0").fetch(DIGEST, KEY)
    assert entry is not None and [path.name for path in entry.parent.iterdir()] == [entry.name]
