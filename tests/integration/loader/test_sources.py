"""Shards over HTTP and S3: the same manifest and batch digests as from the local folder; servers that fail, lie and change; the
cache. The S3 server is moto's, which checks the signatures."""
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
import unittest
import urllib.request

from fault_server import FaultServer
from service import BIN, FULL, ROOT, ServiceTest, data, end_with_parent

STEPS, TILES = 4, 3


class Sources(ServiceTest):
    def setUp(self):
        super().setUp()
        self.local = self.scenes(count=120, size=32, shard=40)
        self.f = self.function(tile=4, tiles=TILES)
        self.digest = data("index", self.local)["manifest_digest"]

    def options(self, *more):
        return ["--manifests", self.folder / "manifests", "--cache-dir", self.folder / "cache", *more]

    def index(self, path, *more, expect=0, env=None):
        return data("index", path, "--again", *self.options(*more), expect=expect, env=env)

    def assert_same_tiles(self, path, env=None):
        local = self.tiles_of(self.local, self.f, STEPS, TILES)
        remote = self.tiles_of(path, self.f, STEPS, TILES, loaders=2, threads=2, env=env, more=("--cache-dir", self.folder / "cache2"))
        self.assertEqual(remote, local)


class Http(Sources):
    def setUp(self):
        super().setUp()
        self.server = self.enterContext(FaultServer(self.local))
        self.url = self.server.url + "/scenes-{000000..000002}.tar"

    def assert_says(self, answer, *words):
        for word in words:
            self.assertIn(word, answer["error"])

    def test_same_digests_as_local(self):
        self.assertEqual(self.index(self.url)["manifest_digest"], self.digest)
        (self.local / "list.txt").write_text("# shards\nscenes-000002.tar\n\nscenes-{000000..000001}.tar  # two\n")
        self.assertEqual(self.index(self.server.url + "/list.txt")["manifest_digest"], self.digest)
        self.assertEqual(self.index(self.url)["classes"], data("index", self.local)["classes"])
        self.assert_same_tiles(self.url)

    def test_what_may_pass_is_tried_again(self):
        self.server.plan("HEAD", "000000", "503", times=2)
        self.server.plan("GET", "000000", "503", times=2)
        self.server.plan("GET", "000001", "half")
        self.server.plan("GET", "000002", "500")
        self.server.plan("GET", "classes.txt", "503", behind=1)  # a range of few bytes, an error page of many
        made = self.index(self.url)
        self.assertEqual(made["manifest_digest"], self.digest)
        self.assertEqual(made["classes"], data("index", self.local)["classes"])
        self.assertEqual(self.server.count("GET", "classes.txt"), 3)
        self.assertEqual(self.server.count("HEAD", "000000.tar", 503), 2)
        self.assertEqual(self.server.count("GET", "000000.tar"), 3)
        self.assertEqual(self.server.count("GET", "000001.tar"), 2, "half a body is fetched again")
        self.assertEqual(self.server.count("GET", "000002.tar", 500), 1)

    def test_a_download_that_stands_still_is_tried_again(self):
        self.server.plan("GET", "000001", "stall")
        self.assertEqual(self.index(self.url, "--stall-seconds", "1")["manifest_digest"], self.digest)

    def test_a_server_that_stays_away_is_named(self):
        self.server.plan("GET", "000001", "503", times=100)
        self.assert_says(self.index(self.url, "--retries", "2", expect=74), "/scenes-000001.tar", "HTTP 503", "3 tries")
        self.assertEqual(self.server.count("GET", "000001.tar"), 3)
        self.assert_says(self.index("http://127.0.0.1:9/a.tar", "--retries", "1", expect=74), "http://127.0.0.1:9/a.tar", "2 tries")

    def test_404_is_final(self):
        answer = self.index(self.server.url + "/scenes-{000000..000003}.tar", expect=65)
        self.assert_says(answer, "/scenes-000003.tar", "HTTP 404", "operation.data_path")
        self.assertEqual(self.server.count("HEAD", "000003.tar"), 1)
        self.assert_says(self.index(self.server.url + "/none.txt", expect=65), "/none.txt", "HTTP 404")

    def test_paths_that_name_nothing(self):
        for path, words in ((self.server.url + "/", "plain HTTP cannot list"), (self.server.url + "/a-{9..0}.tar", "falls"), ("s3:///x/", "no bucket"), (self.server.url + "/classes.txt", "line 1")):
            answer = data("index", path, *self.options(), expect=65 if "classes" in path else 78)
            self.assert_says(answer, words)

    def test_another_etag_while_in_use_is_refused(self):
        for fault, words in (("etag", "HTTP 412"), ("etag-only", "its ETag is"), ("shorter", "bytes, it had")):
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            self.server.salt.clear()
            self.index(self.url)
            shutil.rmtree(self.folder / "cache")
            self.server.plan("GET", "000001.tar", fault, times=1000)
            bad = data("verify", self.url, *self.options(), expect=65)["bad"]
            self.server.faults.clear()
            self.assertEqual(sorted(b["sample"] for b in bad), list(range(40, 80)), f"{fault}: {bad[:2]}")
            for word in ("scenes-000001.tar, key '000000", "byte ", "changed while it is in use", words):
                self.assertIn(word, bad[0]["reason"], fault)

    def test_a_changed_object_is_another_dataset(self):
        self.index(self.url)
        self.server.salt["scenes-000001.tar"] = "other"
        again = data("index", self.url, *self.options())
        self.assertTrue(again["indexed"])
        self.assertIn("scenes-000001.tar was changed", again["because"])

    def test_a_server_without_ranges_is_refused(self):
        self.server.plan("GET", "tar", "whole", times=100)
        big = self.folder / "big"
        big.mkdir()
        server = self.enterContext(FaultServer(big))
        (big / "a.tar").write_bytes(bytes(10 << 20))
        server.plan("GET", "tar", "whole", times=100)
        self.assert_says(self.index(server.url + "/a.tar", expect=65), "whole object")

    def test_a_warm_cache_needs_no_server(self):
        self.index(self.url)
        before = self.server.count("GET", ".tar")
        self.assertGreater(before, 0)
        self.assertEqual(data("verify", self.url, *self.options())["bad"], [])
        self.assertEqual(self.server.count("GET", ".tar"), before)

    def test_damaged_blocks_are_read_again(self):
        self.index(self.url)
        blocks = list((self.folder / "cache").rglob("*.block"))
        self.assertEqual(len(blocks), 4, "three shards and classes.txt")
        for i, block in enumerate(sorted(blocks)):
            content = bytearray(block.read_bytes())
            content[len(content) // 2] ^= 1
            block.write_bytes(content if i else content[:100])
        self.assertEqual(data("verify", self.url, *self.options())["bad"], [])
        self.assertEqual(self.index(self.url)["manifest_digest"], self.digest)

    def test_the_cache_stays_in_its_bounds(self):
        big = self.folder / "big"
        big.mkdir()
        for shard in range(4):  # no images, which an index only lists as bad
            with tarfile.open(big / f"noise-{shard}.tar", "w") as tar:
                for i in range(6):
                    member = tarfile.TarInfo(f"{shard}{i}.jpg")
                    member.size = 1 << 20
                    tar.addfile(member, io.BytesIO(os.urandom(member.size)))
        total = sum(f.stat().st_size for f in big.glob("*.tar"))
        limit = total // 3
        server = self.enterContext(FaultServer(big))
        path = server.url + "/noise-{0..3}.tar"
        self.assertEqual(self.index(path, "--cache-bytes", limit)["manifest_digest"], data("index", big)["manifest_digest"])
        held = sum(f.stat().st_size for f in (self.folder / "cache").rglob("*.block"))
        self.assertLessEqual(held, limit + limit // 32 + (1 << 20), f"of {total} bytes")
        self.assertGreater(held, 0)
        self.assertEqual(len(data("verify", path, *self.options("--cache-bytes", limit), expect=65)["bad"]), 24)
        self.assertEqual(self.index(path, "--cache-bytes", limit)["manifest_digest"], data("index", big)["manifest_digest"])

    def test_training_goes_through_faults(self):
        """A loader whose server answers 503 and half bodies all the while gives the same tiles."""
        local = self.tiles_of(self.local, self.f, STEPS, TILES)
        self.index(self.url)
        for i in range(12):
            self.server.plan("GET", ".tar", ("503", "half", "500")[i % 3], behind=3 * i)
        remote = self.tiles_of(self.url, self.f, STEPS, TILES, more=("--cache-dir", "", "--retries", "20"))
        self.assertEqual(remote, local)


UPLOAD = r"""
import boto3, json, pathlib, sys, time
folder, endpoint = sys.argv[1:]
where = dict(endpoint_url=endpoint, region_name="us-east-1")
iam = boto3.client("iam", aws_access_key_id="a", aws_secret_access_key="b", **where)
iam.create_user(UserName="u")
key = iam.create_access_key(UserName="u")["AccessKey"]
iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}))
s3 = boto3.client("s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"], **where)
s3.create_bucket(Bucket="shards")
for path in sorted(pathlib.Path(folder).iterdir()):
    if not path.name.startswith("."):
        s3.upload_file(str(path), "shards", "set=1/a b+c~(d)/" + path.name)
s3.put_object(Bucket="shards", Key="set=1/a b+c~(d)/deeper/other.tar", Body=b"not listed")
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""


class S3(Sources):
    """Keys with '=', '+', blanks and braces; every request's signature is checked by the server."""

    def setUp(self):
        super().setUp()
        server = pathlib.Path(sys.executable).with_name("moto_server")
        if not server.exists():
            self.fail(f"no {server}; ops/setup --test installs it")
        log = open(self.folder / "moto.log", "wb")
        self.addCleanup(log.close)
        # Three actions make the user; from then on signatures are checked.
        moto = subprocess.Popen([server, "-p", "0"], stdout=log, stderr=log, env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "3"}, preexec_fn=end_with_parent)
        self.addCleanup(moto.wait)
        self.addCleanup(moto.kill)
        self.endpoint = self.endpoint_of(self.folder / "moto.log")
        keys = subprocess.run([sys.executable, "-c", UPLOAD, self.local, self.endpoint], capture_output=True, text=True, timeout=60)
        self.assertEqual(keys.returncode, 0, keys.stderr)
        identity, secret = json.loads(keys.stdout)
        self.env = {**os.environ, "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": identity, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
        self.path = "s3://shards/set=1/a b+c~(d)/"

    def endpoint_of(self, log):
        for _ in range(600):
            for line in log.read_text(errors="replace").splitlines():
                if "Running on http://" in line:
                    return "http://" + line.split("Running on http://")[1].strip()
            time.sleep(0.05)
        self.fail("moto_server did not start: " + log.read_text(errors="replace"))

    def test_same_digests_as_local(self):
        made = self.index(self.path, env=self.env)
        self.assertEqual((made["manifest_digest"], made["shards"]), (self.digest, 3))
        for form in ("scenes-*.tar", "scenes-{000000..000002}.tar", ""):
            self.assertEqual(self.index(self.path + form, env=self.env)["manifest_digest"], self.digest)
        self.assertEqual(self.index(self.path.rstrip("/"), env=self.env)["manifest_digest"], self.digest)
        self.assertEqual(self.index(self.path + "scenes-000001.tar", env=self.env)["samples"], 40)
        self.assert_same_tiles(self.path, env=self.env)

    @unittest.skipUnless(FULL and (BIN / "tessera-trainer").exists(), "whole runs: ops/test --full loader")
    def test_a_run_has_the_same_bits(self):
        """tessera up from the folder over TCP, and from the store by shared memory."""
        chains = set()
        for name, path, keys in (("local", self.local, ["operation.transport=tcp"]), ("remote", self.path, ["operation.transport=shm", f"operation.remote.cache_dir={self.folder}/cache"])):
            words = [BIN / "tessera", "up", ROOT / "tests/integration/tiny.yaml", "--steps", "8"]
            for key in [f"operation.data_path={path}", f"operation.run_id={name}", *keys]:
                words += ["--set", key]
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=300, env=self.env)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            lines = [json.loads(line) for line in (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
            chains.add((lines[-1]["step"], lines[-1]["batch_chain"], lines[-1]["state_digest"]))
        self.assertEqual(len(chains), 1, chains)
        loader = json.loads((self.folder / "runs/remote/status.json").read_text())["loaders"][0]
        self.assertGreater(loader["shared_tiles"], 0)
        self.assertGreater(loader["seconds"]["decode"], 0)

    def test_refusals_say_what_to_set(self):
        wrong = self.index(self.path, expect=65, env={**self.env, "AWS_SECRET_ACCESS_KEY": "wrong"})
        for word in ("HTTP 403", "AWS_SECRET_ACCESS_KEY", self.endpoint):
            self.assertIn(word, wrong["error"])
        self.assertIn("there are no .tar shards", self.index("s3://shards/elsewhere/", expect=65, env=self.env)["error"])
        self.assertIn("HTTP 404", self.index("s3://no-such-bucket/x/", expect=65, env=self.env)["error"])
        self.assertIn("HTTP 404", self.index(self.path + "scenes-{000000..000004}.tar", expect=65, env=self.env)["error"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
