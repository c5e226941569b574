"""Which folder may include which (docs/architecture.md), checked by reading every source of the tree.

common <- proto <- {coordinator, worker, data_loader, ops}; the last four never include one another. Torch headers below
worker/ only, zmq.h below proto/, *.pb.h in the codec, Beast in coordinator/http and the command's HTTP client. Tests of a
part may include that part; tests/sim may include all; the data loader has no torch.

  includes.py ROOT         exit 1 and one line per breach
  includes.py --self-test  plants breaches and expects each to be found
"""
import pathlib
import re
import sys
import tempfile

PARTS = ("coordinator", "worker", "data_loader", "ops")
LOWER = ("common", "proto")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
SOURCES = {".h", ".hpp", ".cpp", ".cc", ".cu", ".cuh"}
# What a header's path matches -> the folders or files that may include it, what the rule is called.
LIBRARIES = (
    (re.compile(r"^(torch|ATen|c10|caffe2)/"), re.compile(r"^(worker/|tests/)"), "torch headers are for worker/"),
    (re.compile(r"^zmq(_addon)?\.h(pp)?$"), re.compile(r"^(proto/|tests/unit/proto/)"), "ZeroMQ is for proto/"),
    (re.compile(r"\.pb\.h$"), re.compile(r"^proto/codec"), "generated headers are for the codec"),
    (re.compile(r"^boost/beast"), re.compile(r"^(coordinator/http/|ops/cli/http_client\.|tests/)"), "Beast is for coordinator/http and ops/cli/http_client"),
    (re.compile(r"^(nccl\.h$|cuda)"), re.compile(r"^(worker/|tests/gpu/)"), "CUDA and NCCL are for worker/"),
)


def breach(source: str, header: str, known: set) -> str:
    """Why `source` may not include `header`; empty when it may."""
    for pattern, allowed, rule in LIBRARIES:
        if pattern.search(header) and not allowed.search(source):
            return rule
    target = header.split("/")[0]
    if target not in known or "/" not in header:
        return ""
    owner = source.split("/")[0]
    if target == "tests":
        return "" if owner == "tests" else "nothing includes tests/"
    if target in LOWER:
        return "common/ includes no other folder" if owner == "common" and target == "proto" else ""
    if owner == target or owner == "tests" and allowed_in_tests(source, target):
        return ""
    return f"{source.rsplit('/', 1)[0]}/ may not include {target}/"


def allowed_in_tests(source: str, target: str) -> bool:
    if source.startswith(("tests/sim/", "tests/perf/", "tests/fuzz/")):
        return True
    words = source.split("/")
    part = words[2] if len(words) > 3 else ""
    # tests/unit/model and tests/goldens/model belong to worker/, tests/gpu too.
    owner = part if part in PARTS else "worker" if part in ("model", "daemon") or words[1] == "gpu" else ""
    return owner == target or owner == ""


def check(root: pathlib.Path) -> list:
    known = set(PARTS) | set(LOWER) | {"tests"}
    found, scanned = [], 0
    for folder in sorted(known):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in SOURCES or not path.is_file():
                continue
            scanned += 1
            source = path.relative_to(root).as_posix()
            text = path.read_text(encoding="utf-8", errors="replace")
            for match in INCLUDE.finditer(text):
                quoted, header = match.group(1) == '"', match.group(2)
                line = text.count("\n", 0, match.start(2)) + 1
                if reason := breach(source, header, known):
                    found.append(f"{source}:{line}: includes {header}: {reason}")
                if quoted and header.startswith("../"):
                    found.append(f"{source}:{line}: includes {header}: paths start at the root of the repository")
    if scanned < 20 and root.name != "planted":
        found.append(f"only {scanned} sources below {root}: wrong folder?")
    return found


def self_test() -> None:
    planted = {
        "common/a.h": '#include "proto/messages.h"\n',
        "proto/a.cpp": '#include "coordinator/machine.h"\n',
        "coordinator/a.cpp": '#include <vector>\n\n  #  include "worker/model/engine.h"\n',
        "worker/a.cpp": '#include "data_loader/order/order.h"\n',
        "data_loader/a.cpp": "#include <ATen/ATen.h>\n",
        "ops/a.cpp": "#include <zmq.h>\n",
        "coordinator/b.cpp": "#include <boost/beast/core.hpp>\n",
        "proto/channel.cpp": '#include "proto/tessera.pb.h"\n',
        "worker/b.cpp": '#include "../common/hash.h"\n',
        "worker/c.cpp": '#include "tests/unit/common/scratch.h"\n',
        "tests/unit/coordinator/a.cpp": '#include "worker/model/engine.h"\n',
    }
    fine = {
        "proto/codec.cpp": '#include <zmq.h>\n#include "proto/tessera.pb.h"\n#include "common/hash.h"\n',
        "worker/d.cpp": '#include <ATen/ATen.h>\n#include "proto/messages.h"\n#include "worker/model/engine.h"\n',
        "coordinator/http/server.cpp": "#include <boost/beast/core.hpp>\n",
        "tests/sim/a.cpp": '#include "worker/model/engine.h"\n#include "coordinator/machine.h"\n',
        "tests/unit/worker/a.cpp": '#include "worker/model/engine.h"\n#include "scratch.h"\n',
        "ops/b.cpp": '// #include "worker/x.h" in a comment\n',
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "planted"
        for name, text in {**planted, **fine}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found = check(root)
        sources = sorted({line.split(":")[0] for line in found})
        assert sources == sorted(planted), f"found {found}"
        assert any(line.startswith("coordinator/a.cpp:3:") for line in found), found


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        sys.exit(0)
    breaches = check(pathlib.Path(sys.argv[1]).resolve())
    print("\n".join(breaches) or "include rule: kept")
    sys.exit(1 if breaches else 0)
