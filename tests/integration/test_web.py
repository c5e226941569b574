"""The status endpoint as browsers, Prometheus and scripts see it: the page in a real browser, documents, errors, limits."""
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import unittest
import urllib.error
import urllib.parse
import urllib.request

from cluster import WorldTest, wait_for

CHROMIUM = shutil.which("chromium")


class Web(WorldTest):
    def start(self, *sets):
        """A run that goes on for as long as the test needs it."""
        up = self.up("--workers", "2", sets=["function.steps=100000", *sets], name="web")
        up.wait_step(40)
        return up, up.address()

    def get(self, url, expect=200, method="GET", headers=None, data=None):
        request = urllib.request.Request(url, method=method, headers=headers or {}, data=data)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                status, body, kind = reply.status, reply.read(), reply.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            status, body, kind = error.code, error.read(), error.headers["Content-Type"]
        self.assertEqual(status, expect, body)
        return body, kind

    def stop(self, up):
        up.process.send_signal(signal.SIGINT)
        return up.finish(expect=75)

    @unittest.skipUnless(CHROMIUM or os.environ.get("TESSERA_REQUIRE_SHARED"), "no chromium")
    def test_page_in_a_browser(self):
        up, address = self.start()
        picture = os.path.join(self.folder, "page.png")
        profile = os.path.join(self.folder, "profile")
        browser = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--window-size=1200,1400",
                   "--virtual-time-budget=6000", "--timeout=20000"]
        dom = subprocess.run([*browser, "--dump-dom", address["http"] + "/"], capture_output=True, text=True, timeout=90).stdout
        subprocess.run([*browser, f"--screenshot={picture}", address["http"] + "/"], capture_output=True, timeout=90)
        shown = dict(re.findall(r'id="(\w+)"[^>]*>([^<]*)<', dom))
        self.assertEqual(shown["state"], "RUNNING", dom[-3000:])
        self.assertEqual(shown["name"], "tiny")
        self.assertIn("2 workers train", shown["reason"])
        self.assertGreaterEqual(int(shown["step"].split(" / ")[0]), 40)
        self.assertEqual(shown["step"].split(" / ")[1], "100000")
        self.assertGreater(float(shown["loss"]), 0)
        self.assertGreater(float(shown["rate"]), 0)
        self.assertEqual(dom.count("RUNNING: rank"), 2, "both workers are listed")
        self.assertIn('class="curve" points="', dom)
        self.assertIn("SERVING", dom)
        self.assertGreater(os.path.getsize(picture), 20000)
        if keep := os.environ.get("TESSERA_SCREENSHOT"):
            shutil.copy(picture, keep)
        self.stop(up)

    def test_documents(self):
        up, address = self.start()
        url = address["http"]
        status = json.loads(self.get(url + "/api/v1/status")[0])
        self.assertEqual(status["schema"], 1)
        self.assertEqual(status["run"]["state"], "RUNNING")
        self.assertEqual([w["state"] for w in status["workers"]], ["RUNNING", "RUNNING"])
        later = json.loads(self.get(url + "/api/v1/status")[0])
        self.assertGreaterEqual(later["revision"], status["revision"])
        for path, needle in (("/livez", b"ok"), ("/readyz", b"ok"), ("/healthz", b""), ("/version", b"version")):
            self.assertIn(needle, self.get(url + path)[0])
        events = json.loads(self.get(url + "/api/v1/events")[0])["events"]
        self.assertTrue(any("generation 1.1" in event["text"] for event in events), events)
        last = events[-1]["id"]
        self.assertTrue(all(event["id"] > last for event in json.loads(self.get(f"{url}/api/v1/events?after={last}")[0])["events"]))
        metrics, kind = self.get(url + "/metrics")
        self.assertIn("text/plain", kind)
        values = dict(line.rsplit(" ", 1) for line in metrics.decode().splitlines() if line and not line.startswith("#"))
        steps = next(float(value) for name, value in values.items() if name.startswith("tessera_steps_committed_total"))
        self.assertGreaterEqual(steps, 40)
        for line in metrics.decode().splitlines():
            self.assertRegex(line, r"^(# (HELP|TYPE) tessera_\w+ .+|tessera_\w+(\{[^}]*\})? \S+)$")
        self.get(url + "/api/v1/checkpoint", method="POST", headers={"Authorization": "Bearer " + address["token"]}, expect=202)
        wait_for(lambda: json.loads(self.get(url + "/api/v1/checkpoints")[0])["checkpoints"], "a checkpoint as asked")
        key = {"Authorization": "Bearer " + address["token"]}
        for severity, text in (("info", "all is well"), ("warning", "look <here>")):
            self.get(url + "/api/v1/note", method="POST", headers=key, data=json.dumps({"severity": severity, "text": text}).encode(), expect=202)
        alerts = wait_for(lambda: json.loads(self.get(url + "/api/v1/status")[0])["alerts"], "the warning among the alerts")
        self.assertEqual([(alert["severity"], alert["reason"]) for alert in alerts], [("warning", "look <here>")])
        said = [(event["severity"], event["text"]) for event in json.loads(self.get(f"{url}/api/v1/events?after={last}")[0])["events"]]
        self.assertTrue({("info", "all is well"), ("warning", "look <here>")} <= set(said), said)
        for bad in (b"", b"[1]", b'{"severity": "fatal", "text": "x"}', b'{"severity": "info", "text": ""}', b'{"severity": "info", "text": 3}', json.dumps({"severity": "info", "text": "x" * 1001}).encode()):
            self.get(url + "/api/v1/note", method="POST", headers=key, data=bad, expect=400)
        self.get(url + "/api/v1/note", method="POST", data=b'{"severity": "info", "text": "x"}', expect=401)
        self.stop(up)

    def test_errors_are_problem_documents_and_nothing_harms_the_run(self):
        up, address = self.start()
        url, place = address["http"], urllib.parse.urlparse(address["http"])
        for path, method, headers, expect in (("/nothing", "GET", {}, 404), ("/api/v1/stop", "POST", {}, 401), ("/api/v1/stop", "POST", {"Authorization": "Bearer wrong"}, 401),
                                              ("/api/v1/status", "DELETE", {}, 405), ("/pictures/../state.db", "GET", {}, 404), ("/pictures/..%2fstate.db", "GET", {}, 404)):
            with self.subTest(path=path, method=method):
                body, kind = self.get(url + path, expect=expect, method=method, headers=headers)
                self.assertEqual(kind, "application/problem+json")
                problem = json.loads(body)
                self.assertEqual(problem["status"], expect)
                self.assertTrue(problem["title"])
        for raw in (b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n", b"POST /api/v1/stop HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b""):
            with socket.create_connection((place.hostname, place.port), timeout=10) as raw_connection, contextlib.suppress(OSError):  # it may hang up first
                raw_connection.sendall(raw)
                raw_connection.shutdown(socket.SHUT_WR)
                while raw_connection.recv(65536):
                    pass
        idle = [socket.create_connection((place.hostname, place.port), timeout=10) for _ in range(60)]  # slow clients hold nothing up
        before = up.step()
        wait_for(lambda: up.step() > before, "steps go on")
        for connection in idle:
            connection.close()
        head = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
        head.request("HEAD", "/api/v1/status")
        self.assertEqual(head.getresponse().status, 200)
        head.close()
        self.stop(up)


if __name__ == "__main__":
    unittest.main(verbosity=2)
