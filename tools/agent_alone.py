"""Prove that the agent's wheel installs alone: build it and the wire's, install both in an empty place, and import.

.venv/bin/python tools/agent_alone.py UV
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROOF = """
import importlib.util, brownout_agent, brownout_agent.agent, brownout_agent.injector
assert importlib.util.find_spec("brownout_controller") is None, "the controller came along"
"""


def main() -> None:
    uv = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for distribution in ("protos", "agent"):
            build = [uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT / distribution]
            subprocess.run(build, check=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, place / "venv"], check=True)
        python = place / "venv/bin/python"
        install = [uv, "pip", "install", "--quiet", "--python", python, *place.glob("*.whl")]
        subprocess.run(install, check=True)
        subprocess.run([python, "-I", "-c", PROOF], check=True)
        for program in ("brownout-agent", "brownout-injector"):
            subprocess.run([python.parent / program, "--help"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
