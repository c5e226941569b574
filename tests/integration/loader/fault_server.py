"""A plain HTTP server of a folder with ranges, ETags and If-Match, and faults that a test plans (standard library only)."""
import hashlib
import http.server
import pathlib
import re
import socket
import threading
import time


class FaultServer:
    """with FaultServer(folder) as server: server.url, server.log, server.plan("GET", "a.tar", "503", times=3)

    Faults: "503", "404", "500", "half" (half the body, then the connection ends), "stall" (half, then nothing), "etag" (another
    ETag, from now on), "etag-only" (another ETag, but If-Match is not looked at), "whole" (200 and the whole file for a range),
    "shorter" (the total size in Content-Range is smaller).
    """

    def __init__(self, folder):
        self.folder, self.log, self.faults, self.salt = pathlib.Path(folder), [], [], {}
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def do_HEAD(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that hangs up
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def plan(self, method, name, fault, times=1, behind=0):
        """The next `times` requests, after `behind` others like them, get the fault."""
        self.faults.append({"method": method, "name": name, "fault": fault, "times": times, "behind": behind})

    def count(self, method, name, status=None):
        return sum(1 for m, n, s in self.log if m == method and n.endswith(name) and status in (None, s))

    def fault_of(self, method, name):
        with self.lock:
            for fault in self.faults:
                if fault["method"] != method or not re.search(fault["name"], name) or fault["times"] == 0:
                    continue
                if fault["behind"] > 0:
                    fault["behind"] -= 1
                    continue
                fault["times"] -= 1
                return fault["fault"]
        return None

    def answer(self, request):
        name = request.path.lstrip("/")
        fault = self.fault_of(request.command, name)
        path = self.folder / name
        if fault in ("503", "500") or fault == "404" or not path.is_file():
            return self.finish(request, name, int(fault) if fault else 404, {"Retry-After": "0"} if fault == "503" else {}, b"an error page, longer than many a range " * 100)
        body = path.read_bytes()
        if fault in ("etag", "etag-only"):
            self.salt[name] = "changed"
        etag = '"' + hashlib.md5(body + self.salt.get(name, "").encode()).hexdigest() + '"'
        headers, status = {"ETag": etag}, 200
        wanted = request.headers.get("If-Match")
        if wanted and wanted != etag and fault != "etag-only":
            return self.finish(request, name, 412, headers, b"")
        if span := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2]), len(body) - 1)
            if fault != "whole":
                status = 206
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body) - (fault == 'shorter')}"
                body = body[first:last + 1]
        self.finish(request, name, status, headers, body, fault)

    def finish(self, request, name, status, headers, body, fault=None):
        with self.lock:
            self.log.append((request.command, name, status))
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        try:
            if fault in ("half", "stall"):
                request.wfile.write(body[:len(body) // 2])
                request.wfile.flush()
                time.sleep(1.8 if fault == "stall" else 0)
                request.close_connection = True
                request.connection.shutdown(socket.SHUT_RDWR)
            else:
                request.wfile.write(body)
        except OSError:
            pass
