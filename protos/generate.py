"""Write the generated modules beside their .proto files, or check that they are fresh.

    uv run --no-project --isolated --with-requirements protos/generator.txt python protos/generate.py [--check]

The generator stamps its version into what it writes, and the runtime refuses anything older: so the
generator's version is every agent's minimum, and `generator.txt` pins it low on purpose.
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).parent / "src"
PACKAGE = Path("brownout_protos/v1")


def generate(into: Path) -> None:
    """Run protoc over every .proto file; raises SystemExit when it fails."""
    protos = sorted(str(path.relative_to(SOURCE)) for path in (SOURCE / PACKAGE).glob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{well_known}",
        f"--python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--grpc_python_out={into}",
        f"--mypy_grpc_out=quiet:{into}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message stands above")
    for stub in (into / PACKAGE).glob("*_pb2_grpc.py*"):
        if "fleet" not in stub.name:
            stub.unlink()  # only fleet.proto declares a service


def stale(fresh: Path) -> list[str]:
    """Names of generated files that differ from, are missing beside, or outlive their source."""
    made = {path.name: path.read_bytes() for path in (fresh / PACKAGE).glob("*_pb2*")}
    kept = {path.name: path.read_bytes() for path in (SOURCE / PACKAGE).glob("*_pb2*") if path.is_file()}
    return sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))


def main() -> None:
    if "--check" not in sys.argv[1:]:
        generate(SOURCE)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    if names:
        raise SystemExit(f"generated code is stale: {', '.join(names)}. Next: make protos")


if __name__ == "__main__":
    main()
