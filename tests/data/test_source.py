"""Where files of suites come from: fetching, digests, archives, the cache of pictures."""

import hashlib
import io
import json
import urllib.request
import zipfile

import pytest

from care import load_suite
from care.data.registry import REGISTRY
from care.data.source import Files, Source, cache_folder
from care.data.tables import Row
from care.errors import DownloadError
from kit import suite_copies as copies

SOURCE = Source("made-up", "https://example.org/page", "MIT", "github", "some/where", "abc123")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def web(monkeypatch):
    """Addresses that can be fetched and what was asked for."""
    served, asked = {}, []

    def urlopen(address, timeout):
        asked.append(address)
        if address not in served:
            raise urllib.error.URLError("offline")
        return io.BytesIO(served[address])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return served, asked


def test_a_picture_of_a_cell_is_kept_once():
    files, row = Files(SOURCE), Row({}, "here")
    first = files.stored(copies.picture_bytes(1), row, "image")
    assert first == files.stored(copies.picture_bytes(1), row, "image")
    assert first.is_relative_to(cache_folder()) and first.suffix == ".png"
    assert first.read_bytes() == copies.picture_bytes(1)
    assert first != files.stored(copies.picture_bytes(2), row, "image")


@pytest.mark.parametrize("name", ["scienceqa", "mme"])
def test_parquet_suites_in_their_real_format(name, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = copies.make(name)
    for relative, rows in found.tables.items():
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / relative)
    suite = load_suite(name, path=tmp_path)
    assert len(suite) == found.n
    assert all(e.load_images()[0].size == (8, 6) for e in suite)


def raw(source, relative):
    return f"https://raw.githubusercontent.com/{source.at}/{source.revision}/{relative}"


def test_a_suite_is_fetched_once_at_its_commit(web):
    served, asked = web
    benchmark, found = REGISTRY["strongreject"], copies.make("strongreject")
    content = "category,source,forbidden_prompt\nBaking,made up,Bake a cake\n"
    served[raw(benchmark.source, found.first)] = content.encode()
    suite = load_suite("strongreject")
    assert (suite.source, suite.revision) == (benchmark.source.page, benchmark.source.revision)
    assert load_suite("strongreject") == suite
    assert asked == [raw(benchmark.source, found.first)]


def test_pictures_are_fetched_where_that_is_allowed(web):
    served, _ = web
    source, found = REGISTRY["mossbench"].source, copies.make("mossbench")
    served[raw(source, found.first)] = json.dumps(found.tables[found.first]).encode()
    for number, picture in enumerate(found.pictures):
        served[raw(source, picture)] = copies.picture_bytes(number)
    assert len(load_suite("mossbench")) == 3
    del served[raw(source, found.pictures[0])]
    assert len(load_suite("mossbench")) == 3  # they are kept


def test_offline_says_what_to_do(web):
    with pytest.raises(DownloadError, match=r"can't be fetched .*offline.*pass a copy with path"):
        load_suite("xstest")


def test_another_file_than_the_published_one_is_refused(web):
    served, _ = web
    served[f"{REGISTRY['mmbench'].source.at}/MMBench_DEV_EN.tsv"] = b"index\n1\n"
    with pytest.raises(DownloadError, match=r"has SHA-256 .* was published"):
        load_suite("mmbench")
    assert not list(cache_folder().rglob("*.tsv"))


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(repo, filename, *, repo_type, revision):
        asked.append((repo, filename, repo_type, revision))
        copies.make("jbb-benign").write(tmp_path / "hub")
        return str(tmp_path / "hub" / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    suite, source = load_suite("jbb-benign"), REGISTRY["jbb-benign"].source
    assert asked == [(source.at, "data/benign-behaviors.csv", "dataset", source.revision)]
    assert (suite.source, suite.revision) == (source.page, source.revision)


def test_errors_of_the_hub_are_one_sentence(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection\nmany more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(DownloadError, match=r"\(no connection\); go online, or pass a local copy"):
        load_suite("or-bench-hard")
    with pytest.raises(DownloadError, match=r"accept the terms at https\S+VLGuard and log in"):
        load_suite("vlguard-safe")


def test_a_release_is_unpacked_and_its_digest_recorded(web, tmp_path):
    served, asked = web
    found = copies.make("mm-vet").write(tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "mm-vet.zip", "w") as archive:
        for path in sorted(found.rglob("*.*")):
            archive.write(path, f"mm-vet/{path.relative_to(found)}")
    content = (tmp_path / "mm-vet.zip").read_bytes()
    served[f"{REGISTRY['mm-vet'].source.at}/v1/mm-vet.zip"] = content
    suite = load_suite("mm-vet")
    digest = hashlib.sha256(content).hexdigest()
    assert (len(suite), suite.revision) == (2, f"release v1, sha256:{digest}")
    assert load_suite("mm-vet") == suite and len(asked) == 1
    own = load_suite("mm-vet", path=tmp_path / "mm-vet.zip")
    assert own.examples == suite.examples and own.revision == f"sha256:{digest}"
