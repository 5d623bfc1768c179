"""Build what would be published, check it, and use it where nothing else is."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

FILES = {
    *(".ruff.toml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"),
    *("MANIFEST.in", "pyproject.toml", "setup.cfg", "setup.py", "tox.ini"),
}
# Of the tests a part that needs a gateway, threads, docs and typing, and takes seconds.
QUICK = [
    "tests/docs/test_docs.py",
    "tests/docs/test_frame.py",
    "tests/session/test_handoff.py",
    "tests/transports/test_mount.py",
]


def run(*command: str | Path, cwd: Path | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def new_environment(folder: Path) -> Path:
    """Make one that is empty, and give the folder of its commands."""
    run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", folder)
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def check_contents(wheel: Path, source: Path) -> None:
    package = files_in("cagent_session")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert package <= in_wheel, package - in_wheel
    assert not {name for name in in_wheel if name.startswith(("tests", "benchmarks", "docs"))}
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    wanted = package | files_in(".ci", "benchmarks", "docs", "tests") | FILES
    assert wanted <= in_source, wanted - in_source


def files_in(*folders: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def main(folder: Path) -> None:
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    (source,) = (folder / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    check_contents(wheel, source)

    commands = new_environment(folder / "wheel")
    run(commands / "python", "-m", "pip", "install", "--quiet", wheel)
    check = "import cagent_session, sys; sys.exit('pytest' in sys.modules)"
    run(commands / "python", "-W", "error", "-c", check)
    run(commands / "cagent-session", "demo")

    commands = new_environment(folder / "source")
    run(commands / "python", "-m", "pip", "install", "--quiet", f"{source}[test]")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    # Not "python -m pytest", which would look at the sources in this folder.
    run(commands / "pytest", "-q", *QUICK, cwd=folder / source.name.removesuffix(".tar.gz"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
