"""A cluster by hand, as the README shows it, with network namespaces as hosts: a head node, two worker nodes, a loader
node. One worker node is then cut off. Needs root and iproute2; skipped by name where namespaces are not allowed."""
import contextlib
import json
import os
import pathlib
import subprocess
import unittest
import urllib.request

from cluster import DEADLINE_S, TINY, Up, WorldTest, program, wait_for

SUBNET = "10.77.31"
HOSTS = {"head": 1, "node-a": 2, "node-b": 3, "loader-a": 4}


def sh(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True)


class Namespaces:
    """A bridge in a namespace of its own, so that nothing of the machine's network is touched."""

    def __init__(self, tag):
        self.tag = tag
        self.switch = f"ts-{tag}-switch"

    def name(self, host):
        return f"ts-{self.tag}-{host}"

    def __enter__(self):
        sh("ip", "netns", "add", self.switch)
        inside = ("ip", "netns", "exec", self.switch, "ip")
        sh(*inside, "link", "add", "bridge0", "type", "bridge")
        sh(*inside, "link", "set", "bridge0", "up")
        for host, number in HOSTS.items():
            space = self.name(host)
            sh("ip", "netns", "add", space)
            sh("ip", "-n", self.switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            sh(*inside, "link", "set", f"p{number}", "master", "bridge0")
            sh(*inside, "link", "set", f"p{number}", "up")
            for command in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"), ("addr", "add", f"{SUBNET}.{number}/24", "dev", "eth0")):
                sh("ip", "-n", space, *command)
        return self

    def cut(self, host):
        sh("ip", "-n", self.switch, "link", "set", f"p{HOSTS[host]}", "down")

    def __exit__(self, *_):
        for host in HOSTS:
            sh("ip", "netns", "del", self.name(host), check=False)
        sh("ip", "netns", "del", self.switch, check=False)


def namespaces_allowed():
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = sh("ip", "netns", "add", "ts-probe", check=False)
    if probe.returncode != 0:
        return f"network namespaces are not allowed here: {probe.stderr.strip()}"
    sh("ip", "netns", "del", "ts-probe", check=False)
    return ""


class ByHand(WorldTest):
    def setUp(self):
        super().setUp()
        why = namespaces_allowed()
        if why:
            self.skipTest(why)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.net = self.stack.enter_context(Namespaces(str(os.getpid() % 100000)))
        self.run_dir = pathlib.Path(self.folder) / "byhand"

    def start(self, host, *words):
        log = open(pathlib.Path(self.folder) / f"{host}-{pathlib.Path(words[0]).name}.log", "wb")
        self.stack.callback(log.close)
        process = subprocess.Popen(("ip", "netns", "exec", self.net.name(host)) + words, stdout=log, stderr=log, cwd=self.folder)
        self.stack.callback(process.wait)
        self.stack.callback(lambda: process.poll() is None and process.kill())
        return process

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in pathlib.Path(self.folder).glob("*.log"))

    def status(self):
        with contextlib.suppress(OSError, ValueError):
            address = json.loads((self.run_dir / "address.json").read_text())
            reply = sh("ip", "netns", "exec", self.net.name("head"), program("tessera"), "status", address["http"], "--json", check=False)
            return json.loads(reply.stdout.strip().splitlines()[-1]) if reply.returncode == 0 and reply.stdout.strip() else None
        return None

    def test_cluster_by_hand_and_a_node_cut_off(self):
        reference = self.run_once("--workers", "1", name="reference")
        ip = {host: f"{SUBNET}.{number}" for host, number in HOSTS.items()}
        head = self.start("head", program("tessera-coordinator"), str(TINY), "--set", f"operation.run_dir={self.run_dir}",
                          "--set", f"operation.control.bind={ip['head']}", "--set", "operation.control.port=7001",
                          "--set", f"operation.http.bind={ip['head']}", "--set", "operation.min_workers=2")
        control = f"{ip['head']}:7001"
        self.start("loader-a", program("tessera-loader"), "--coordinator", control, "--bind", ip["loader-a"], "--advertise", ip["loader-a"])
        for node in ("node-a", "node-b"):
            self.start(node, program("tessera-worker"), "--coordinator", control, "--name", node, "--workers", "2" if node == "node-b" else "1",
                       "--advertise", ip[node])
        try:
            wait_for(lambda: (self.status() or {}).get("progress", {}).get("step", -1) >= 5 or head.poll() is not None, "step 5 of the cluster")
            self.net.cut("node-a")
            wait_for(lambda: head.poll() is not None, "the end of the run without node-a")
        except AssertionError as error:
            raise AssertionError(f"{error}\nstatus: {self.status()}\n{self.logs()}") from None
        self.assertEqual(head.returncode, 0, self.logs())
        rows = self.ledger(self.run_dir)
        self.assertEqual(sorted(rows), list(range(30)))
        self.assertEqual({step: pair[0] for step, pair in rows.items()}, {step: pair[0] for step, pair in self.ledger(pathlib.Path(self.folder) / "reference").items()})
        listing = subprocess.run([program("tessera"), "checkpoint", "verify", str(self.run_dir), "--json"], capture_output=True, text=True, timeout=60)
        self.assertEqual(listing.returncode, 0, listing.stderr)
        last = json.loads(listing.stdout.strip().splitlines()[-1])["checkpoints"][-1]
        self.assertEqual((last["step"], last["state_digest"]), (30, reference["state_digest"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
