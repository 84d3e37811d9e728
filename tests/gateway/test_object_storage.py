"""Model repositories in object storage: a real S3 server, and gateways that serve from it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.calls import ECHO, eventually, index, infer, load, ready, refusal, unload
from support.server import Gateway, launch, serving
from support.storage import Store, noisy, storing


def scaling(factor: object) -> str:
    """A model that multiplies by `factor`."""
    return f"""
class Model:
    inputs = outputs = [("x", "float32", (-1, 4))]

    def execute(self, inputs):
        return {{"x": inputs["x"] * {factor}}}
"""


def answer(gateway: Gateway, model: str) -> float:
    """What a scaling model makes of 1."""
    return float(infer(gateway, model, name="x")[0, 0])


def kept(cache: Path) -> set[str]:
    """The names of the files that a cache keeps for all servers, with their contents' digests."""
    return {file.name for file in cache.glob("*/objects/*/*-*")}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """The S3 server of this module."""
    with storing() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder to keep models in."""
    return tmp_path / "cache"


class TestFollowed:
    """A server that follows a bucket."""

    @pytest.fixture(scope="class")
    @classmethod
    def cache(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Its cache."""
        return tmp_path_factory.mktemp("followed")

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, store: Store, cache: Path) -> Iterator[Gateway]:
        """The server, with one model from the start."""
        store.put("followed", {"first/config.pbtxt": ECHO, "first/1/": "", "": "", "second/1/model.py": scaling(1)})
        store.put("followed", {"second/2/model.py": scaling(2), "second/1/large.bin": bytes(100_000)})
        flags = ["--model-control", "poll", "--poll-interval-s", "0.2", "--model-cache", cache]
        with serving("s3://models/followed", *flags, environment=store.environment) as running:
            yield running

    def test_only_what_is_served_is_fetched(self, gateway, cache):
        """The newest version serves, as from a folder, and the older one's large files are left in the bucket."""
        assert index(gateway) == {"first/1": ("READY", ""), "second/2": ("READY", "")}
        assert answer(gateway, "second") == 2
        assert infer(gateway, "first").shape == (1, 4)
        assert all(file.stat().st_size < 100_000 for file in cache.rglob("*"))

    def test_models_come_and_go_with_their_objects(self, gateway, store, cache):
        """New objects are served, replaced ones take over, removed ones vanish from server and disk, by themselves."""
        store.put("followed", {"passing/1/model.py": scaling(3)})
        eventually(lambda: ready(gateway, "passing"))
        assert answer(gateway, "passing") == 3
        store.put("followed", {"passing/1/model.py": scaling(4)})
        eventually(lambda: answer(gateway, "passing") == 4)
        store.put("followed", {"passing/2/model.py": scaling(5)})
        eventually(lambda: answer(gateway, "passing") == 5)
        store.remove("followed", "passing/2/model.py")
        eventually(lambda: answer(gateway, "passing") == 4)
        store.remove("followed", "passing/1/model.py")
        eventually(lambda: not ready(gateway, "passing"))
        eventually(lambda: not list(cache.glob("*/*/*/passing*/*")) and not list(cache.glob("*/objects/passing/*")))

    @pytest.mark.parametrize(
        ("key", "reason"),
        [
            ("odd/1/../../../../escaped.py", "'.' or '..'"),
            ("odd/1//etc/escaped.py", "an empty part"),
            ("odd/1/x\\escaped.py", "a backslash"),
            ("odd/1/model.py/escaped.py", "both a file and a folder"),
        ],
    )
    def test_odd_keys_lead_nowhere(self, gateway, store, cache, key, reason):
        """A key that no file can have is the reason why its model does not serve; nothing is written anywhere."""
        store.put("followed", {"odd/1/model.py": scaling(1), key: "stray"})
        found = eventually(lambda: index(gateway).get("odd/", ("", ""))[1])
        assert reason in found
        store.remove("followed", "odd/1/model.py", key)
        eventually(lambda: "odd/" not in index(gateway))
        assert not list(cache.parent.rglob("escaped.py"))

    def test_broken_model_says_why_and_no_more(self, gateway, store, cache):
        """A model that does not load is listed with its reason, without the cache's folders."""
        store.put("followed", {"broken/1/model.py": "nonsense"})
        reason = eventually(lambda: index(gateway).get("broken/1", ("", ""))[1])
        assert "NameError" in reason
        assert str(cache) not in reason
        store.remove("followed", "broken/1/model.py")
        eventually(lambda: "broken/1" not in index(gateway))

    def test_secrets_stay_out_of_the_log(self, gateway):
        """Neither part of the credentials is logged."""
        assert "never-in-a-log" not in gateway.server.log


def test_loads_by_rpc_take_the_newest_state(store, cache):
    """In explicit mode nothing is fetched until it is asked for, and each load takes what lies there at that moment."""
    store.put("asked", {"m/1/model.py": scaling(1), "other/1/model.py": scaling(9)})
    flags = ["--model-control", "explicit", "--model-cache", cache]
    with serving("s3://models/asked", *flags, environment=store.environment) as gateway:
        assert set(index(gateway)) == {"m/", "other/"}
        assert not kept(cache)
        load(gateway, "m")
        assert answer(gateway, "m") == 1
        store.put("asked", {"m/1/model.py": scaling(2), "m/2/model.py": scaling(3)})
        load(gateway, "m")
        assert answer(gateway, "m") == 3
        load(gateway, "m", {"version_policy": {"specific": {"versions": [1]}}})
        assert answer(gateway, "m") == 2
        assert len(kept(cache)) == 1
        unload(gateway, "m")
        assert "'ghost' is not found" in refusal(lambda: load(gateway, "ghost"))[1]


def test_restarts_and_neighbours_fetch_nothing_twice(store, cache):
    """What was fetched once serves the next start and a second server; damage to it is noticed and mended."""
    store.put("shared", {f"m{number}/1/model.py": scaling(number) for number in range(3)})
    arguments = ["--model-repository", "s3://models/shared", "--port", "0", "--model-cache", cache]
    with (
        launch(*arguments, environment=store.environment) as one,
        launch(*arguments, environment=store.environment) as two,
    ):
        one.wait_until_ready()
        two.wait_until_ready()
        fetched = re.findall(r"model (m\d): fetching", one.log + two.log)
        assert sorted(fetched) == ["m0", "m1", "m2"]
        assert "3 models ready" in one.log
        assert "3 models ready" in two.log
    damaged = next(cache.glob("*/objects/m1/*-*"))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes().replace(b"* 1", b"* 7"))
    with serving("s3://models/shared", "--model-cache", cache, environment=store.environment) as gateway:
        assert re.findall(r"model (m\d): fetching", gateway.server.log) == ["m1"]
        assert "model m1: 1/model.py is damaged in the cache" in gateway.server.log
        assert [answer(gateway, f"m{number}") for number in range(3)] == [0, 1, 2]


def test_storage_may_go_and_come_back(cache):
    """With the store away, servers serve on and start with what was fetched before; once it is back they follow it."""
    with storing() as store:
        store.put("away", {"m/1/model.py": scaling(1)})
        flags = ["--model-control", "poll", "--poll-interval-s", "0.2", "--model-cache", cache]
        with serving("s3://models/away", *flags, environment=store.environment) as before:
            store.process.kill()
            store.process.wait()
            before.server.wait_for_log("cannot follow the model repository: s3://models/away: ")
            assert answer(before, "m") == 1
            with serving("s3://models/away", *flags, environment=store.environment) as during:
                assert "serving what was fetched before: m" in during.server.log
                assert answer(during, "m") == 1
                with storing(int(store.endpoint.rpartition(":")[2])) as again:
                    again.put("away", {"m/1/model.py": scaling(2)})
                    for gateway in (before, during):
                        eventually(lambda gateway=gateway: answer(gateway, "m") == 2)
                        assert gateway.server.log.count("cannot follow the model repository") <= 1


def test_damage_on_the_way_is_mended(store, cache):
    """A file that comes with other bytes than were stored is fetched again, and serves as it was stored."""
    store.put("noise", {"m/1/model.py": scaling(1)})
    with noisy(store.endpoint, b"* 1", b"* 7") as (endpoint, spoilt):
        environment = {**store.environment, "AWS_ENDPOINT_URL": endpoint}
        with serving("s3://models/noise", "--model-cache", cache, environment=environment) as gateway:
            assert spoilt.is_set()
            assert answer(gateway, "m") == 1


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("s3://no-such-bucket/models", 1, "s3://no-such-bucket/models: The specified bucket does not exist"),
        ("gs://models/m", 2, "a package for gs:// is missing: pip install 'tensorgate[gs]'"),
        ("https://user:secret@127.0.0.1:9/m.zip?sig=secret", 1, "https://***@127.0.0.1:9/m.zip?***: "),
    ],
)
def test_wrong_urls_are_one_clear_line(store, cache, url, code, message):
    """A repository that cannot be had ends the start in a line that says why, without passwords."""
    with launch("--model-repository", url, "--model-cache", cache, environment=store.environment) as server:
        assert server.wait() == code
    assert message in server.log
    assert "Traceback" not in server.log
    assert "secret" not in server.log


def test_archive_on_a_web_server(store, cache):
    """A .zip of a repository serves by its http URL, and a new one takes the place of the old."""

    def publish(factor: int) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr("m/1/model.py", scaling(factor))
        store.client.put_object(Bucket="models", Key="models.zip", Body=archive.getvalue(), ACL="public-read")

    publish(1)
    flags = ["--model-control", "poll", "--poll-interval-s", "0.2", "--model-cache", cache]
    with serving(f"{store.endpoint}/models/models.zip", *flags) as gateway:
        assert answer(gateway, "m") == 1
        publish(2)
        eventually(lambda: answer(gateway, "m") == 2)
