"""The same batches whoever serves them, and exactly once whatever dies: real loaders, consumers with a trainer's fetch thread.

TESSERA_FULL=1 (ops/test --full loader) runs every combination and 1,000 kills; otherwise a seeded sample. TESSERA_SEED draws
another sample; TESSERA_SWEEP_DATA=PATH[:PATH...] sweeps other datasets, which must all be forms of one (plain, repacked).
"""
import hashlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import time
import unittest

from service import FULL, ServiceTest, data

SEED = int(os.environ.get("TESSERA_SEED", "1"))


class Sweep(ServiceTest):
    def test_one_digest_for_all_combinations(self):
        paths = [p for p in os.environ.get("TESSERA_SWEEP_DATA", "").split(":") if p] or [self.scenes(count=400, size=32, shard=100)]
        self.assertEqual(len({data("index", p)["manifest_digest"] for p in paths}), 1, "these are several datasets")
        tiles, steps = 12, 8 if FULL else 4
        function = self.function(tile=4, tiles=tiles)
        all_of_them = list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 3, 4), ("tcp", "shm"), paths))
        chosen = all_of_them if FULL else random.Random(SEED).sample(all_of_them, 5)
        expected = None
        for loaders, threads, consumers, transport, path in chosen:
            with self.subTest(loaders=loaders, threads=threads, consumers=consumers, transport=transport, data=path):
                got = self.tiles_of(path, function, steps, tiles, loaders, threads, consumers, transport)
                expected = expected or got
                self.assertEqual(got, expected)
        batches = hashlib.sha256(repr(sorted(expected.items())).encode()).hexdigest()[:16]
        print(f"{len(chosen)} combinations of {len(all_of_them)}: {steps} steps of {tiles} tiles each, one value ({batches})", flush=True)


class Kills(ServiceTest):
    def test_exactly_once_whatever_is_killed(self):
        kills = int(os.environ.get("TESSERA_KILLS", 1000 if FULL else 8))
        tiles, seed = 6, SEED
        path, function = self.scenes(count=400, size=32, shard=100), self.function(tile=4, tiles=tiles)
        draw = random.Random(seed)
        steps = 1_000_000  # more than the kills leave time for
        loaders = [self.loader(f"loader{i}", path, function) for i in range(2)]
        file = self.list_loaders(loaders)
        shares, transports = [(0, 2), (2, 4), (4, 6)], ("shm", "tcp", "auto")
        consumers = [self.consumer(f"c{i}", function, file, (0, steps), share, transports[i], pause_ms=10) for i, share in enumerate(shares)]
        killed = {"loader": 0, "consumer": 0}
        longest, ends = 0.0, 0
        begin = time.monotonic()
        for kill in range(kills):
            time.sleep(draw.uniform(0.01, 0.08))
            alive = [c for c in consumers if c.process.poll() is None]
            for c in consumers:
                self.assertIn(c.process.poll(), (None, 0), c.log_path.read_text()[-1000:])
            ends += len(consumers) - len(alive) > 0
            victim = draw.choice(loaders + alive)
            if victim in loaders:
                killed["loader"] += 1
                victim.kill()
                victim.start()
                self.list_loaders(loaders)
                before = {c: c.out.stat().st_size for c in alive if c.out.exists()}
                longest = max(longest, self.wait_for_progress(before))
            else:
                killed["consumer"] += 1
                victim.kill()
                victim.start()
        self.assertEqual(ends, 0, "consumers ended before the kills did: raise the steps")
        self.finish_at_common_step(consumers)
        digests = {}
        for consumer, (first, last) in zip(consumers, shares):
            lines = consumer.lines()
            order = [(int(s), int(t)) for s, t, _ in lines]
            self.assertEqual(order, [(s, t) for s in range(len(order)) for t in range(first, last)][:len(order)], "lost, repeated or out of order")
            digests.update({(int(s), int(t)): d for s, t, d in lines})
        samples = 4 * len(digests)
        # What an undisturbed pass says of the first steps, over TCP from one loader.
        for loader in loaders:
            loader.kill()
        clean_steps = min(int(s) for consumer in consumers for s, _, _ in consumer.lines()[-1:])
        clean = self.tiles_of(path, function, clean_steps, tiles, transport="tcp")
        self.assertEqual(clean, {key: digest for key, digest in digests.items() if key[0] < clean_steps})
        self.assertEqual(self.left_behind(), [], "shared memory outlives its processes")
        print(f"{kills} kills (seed {seed}: {killed['loader']} of loaders, {killed['consumer']} of consumers) in {time.monotonic() - begin:.0f} s: {samples} samples of {clean_steps} whole steps, "
              f"none lost or repeated, the undisturbed pass's digests; longest wait behind a loader's death {longest:.2f} s", flush=True)

    def wait_for_progress(self, before, deadline_s=20):
        """Seconds until every consumer of `before` has taken something."""
        begin = time.monotonic()
        while any(c.process.poll() is None and c.out.stat().st_size <= size for c, size in before.items()):
            self.assertLess(time.monotonic() - begin, deadline_s, "no tile after a loader's death")
            time.sleep(0.002)
        return time.monotonic() - begin

    def finish_at_common_step(self, consumers):
        for consumer in consumers:
            consumer.kill()
            text = consumer.out.read_text()
            consumer.out.write_text(text[:text.rfind("\n") + 1])

    def left_behind(self):
        """memfds named tessera that some process still holds (there must be no process left that could)."""
        held = []
        for entry in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
            try:
                target = os.readlink(entry)
                command = (entry.parents[1] / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "memfd:tessera" in target and str(self.folder) in command:
                held.append((str(entry), target))
        return held


class DamagedCopy(ServiceTest):
    def damage(self, shard):
        """Changes every image of a shard in place; size and time stay, so that the manifest looks fresh."""
        info, content = shard.stat(), bytearray(shard.read_bytes())
        for at in range(len(content)):
            if content[at:at + 3] == b"\xff\xd8\xff":
                content[at + 200] ^= 1
        shard.write_bytes(content)
        os.utime(shard, ns=(info.st_atime_ns, info.st_mtime_ns))

    def test_another_loader_with_a_good_copy_is_asked(self):
        good, function = self.scenes(count=96, size=32, shard=32), self.function(tile=4, tiles=6)
        copy = self.folder / "copy"
        shutil.copytree(good, copy)
        data("index", copy)
        self.damage(copy / "scenes-000001.tar")
        expected = self.tiles_of(good, function, 4, 6)
        loaders = [self.loader("damaged", copy, function), self.loader("good", good, function)]
        taker = self.consumer("taker", function, self.list_loaders(loaders), (0, 4), (0, 6))
        taker.finish()
        self.assertEqual({(int(s), int(t)): d for s, t, d in taker.lines()}, expected)
        self.assertIn("asking elsewhere", taker.log_path.read_text())
        loaders[1].kill()
        alone = self.consumer("alone", function, self.list_loaders(loaders[:1]), (0, 4), (0, 6))
        self.assertEqual(alone.process.wait(timeout=30), 65, "when no loader has a good copy the run stops")
        for word in ("scenes-000001.tar", "key '000000", "byte "):
            self.assertIn(word, alone.log_path.read_text())


class SlowConsumer(ServiceTest):
    def test_a_stopped_consumer_never_makes_a_loader_grow(self):
        path, function = self.scenes(count=64, size=64, shard=64), self.function(size=224, tile=16, tiles=4)
        loader = self.loader("loader0", path, function, threads=2)
        file = self.list_loaders([loader])
        for transport in ("tcp", "shm"):
            stopped = self.consumer(f"stopped-{transport}", function, file, (0, 100000), (0, 4), transport)
            stopped.words += ["--budget-tiles", "64"]
            stopped.kill()
            stopped.start()
            self.wait_for_line(stopped)
            stopped.process.send_signal(signal.SIGSTOP)
            self.assertLess(self.settled_memory(loader.process.pid), 160 << 20, f"{transport}: 64 tiles of 2.4 MB are asked for")
            other = self.consumer(f"other-{transport}", function, file, (0, 2), (0, 4), transport)
            other.finish()
            stopped.process.send_signal(signal.SIGCONT)
            before = stopped.out.stat().st_size
            for _ in range(500):
                if stopped.out.stat().st_size > before:
                    break
                time.sleep(0.02)
            self.assertGreater(stopped.out.stat().st_size, before, "it goes on when it wakes")
            stopped.kill()

    def wait_for_line(self, consumer):
        for _ in range(1000):
            if consumer.out.exists() and consumer.out.stat().st_size > 0:
                return
            time.sleep(0.01)
        self.fail(consumer.log_path.read_text())

    def settled_memory(self, pid):
        """What it holds when it has stopped growing."""
        before = self.memory(pid)
        for _ in range(40):
            time.sleep(0.5)
            now = self.memory(pid)
            if abs(now - before) < 1 << 20:
                return now
            before = now
        self.fail(f"the loader still grows: {before} bytes")

    def memory(self, pid):
        """Resident bytes, shared memory included."""
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    unittest.main(verbosity=2)
