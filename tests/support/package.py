"""Build what would be published, check it, and install it where nothing else is."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def run(*command: str | Path) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def main(folder: Path) -> None:
    root = Path(__file__).parent.parent.parent
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", root)
    (wheel,) = (folder / "dist").glob("*.whl")
    (source,) = (folder / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)

    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(root).as_posix()
        for path in (root / "cagent_session").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert package <= in_wheel, package - in_wheel
    assert not {name for name in in_wheel if name.startswith(("tests", "benchmarks"))}
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    assert package | {"LICENSE", "README.md", "setup.cfg", "setup.py"} <= in_source

    run(sys.executable, "-m", "virtualenv", "--clear", folder / "clean")
    bin_folder = folder / "clean" / ("Scripts" if sys.platform == "win32" else "bin")
    run(bin_folder / "python", "-m", "pip", "install", "--quiet", wheel)
    check = "import cagent_session, sys; sys.exit('pytest' in sys.modules)"
    run(bin_folder / "python", "-W", "error", "-c", check)
    run(bin_folder / "cagent-session", "demo")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
