"""The environment that the two commands make: made once, skipped after, repaired when half-made.

A tiny project with empty requirements and a build backend of its own stands in for the real one,
so that pip and venv are real and no network is needed.
"""

import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from tests.support.tiny_project import ROOT, wait_until

pytestmark = pytest.mark.slow
SETUP = Path("scripts/shell/setup")
PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1"
"""
BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "tiny-1-py3-none-any.whl", "tiny-1.dist-info"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        wheel.writestr("tiny.pth", str(Path.cwd()))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


class Setup:
    """A project folder that has nothing but its files yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT / SETUP, root / SETUP)
        for name in ("requirements.txt", "requirements-models.txt", "requirements-dev.txt"):
            (root / name).write_text("# nothing\n")
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)
        (root / "tiny_module.py").write_text("")
        self.env = dict(os.environ)

    def run(self, *options: str, check: int = 0) -> str:
        """`environment.sh OPTIONS`; what it said."""
        command = ["bash", str(SETUP / "environment.sh"), *options]
        done = subprocess.run(
            command, cwd=self.root, env=self.env, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == check, done.stdout
        return done.stdout

    def works(self) -> bool:
        """Whether the project can be imported by the environment's Python."""
        code = ["-c", "import tiny_module"]
        python = str(self.root / ".venv/bin/python")
        return subprocess.run([python, *code], cwd="/", check=False).returncode == 0

    @property
    def stamp(self) -> Path:
        return self.root / ".venv/.nexa-stamp"


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """An environment made by a first call; each test leaves it up to date."""
    made = Setup(tmp_path_factory.mktemp("setup") / "project")
    said = made.run()
    assert "Creating .venv with Python 3" in said
    assert "The environment is ready (" in said
    return made


def test_the_first_call_makes_it_and_the_second_does_nothing(setup: Setup) -> None:
    assert setup.works()
    before = setup.stamp.stat().st_mtime_ns
    started = time.monotonic()
    assert setup.run() == ""
    assert time.monotonic() - started < 3
    assert setup.stamp.stat().st_mtime_ns == before


def test_the_tests_requirements_are_added_to_the_same_venv(setup: Setup) -> None:
    (setup.root / "requirements-dev.txt").write_text("# changed\n")
    said = setup.run("--dev")
    assert "Installing" in said
    assert "Creating" not in said
    assert (setup.run("--dev"), setup.run()) == ("", "")


def test_requirements_that_cannot_be_met_leave_what_stood(setup: Setup) -> None:
    file, setup_stamp = setup.root / "requirements.txt", setup.stamp.read_text()
    good = file.read_text()
    file.write_text("./no-such-folder\n")
    assert "pip could not install the requirements" in setup.run(check=69)
    assert setup.stamp.read_text() == setup_stamp
    file.write_text(good)
    assert setup.run() == ""


def test_uv_looks_where_pip_was_told_to_look_and_where_uv_fails_pip_installs(setup: Setup, tmp_path: Path) -> None:
    """The package is in a folder that only pip's configuration names."""
    name, info = "nowhere_else-1-py3-none-any.whl", "nowhere_else-1.dist-info"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nowhere-else\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {tmp_path}\n")
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    file, env = setup.root / "requirements.txt", setup.env
    own = {key: value for key, value in env.items() if not key.startswith("PIP_")}
    own["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    assert shutil.which("uv"), "environment.sh installs it"
    for installer, path in (("uv", env["PATH"]), ("pip", f"{tmp_path}:{env['PATH']}")):
        setup.env = own | {"PATH": path}
        file.write_text(f"nowhere-else  # with {installer}\n")
        setup.run()
        (installed,) = setup.root.glob(f".venv/lib/python3*/site-packages/{info}")
        assert (installed / "INSTALLER").read_text().strip() == installer
        shutil.rmtree(installed)
    setup.env = env
    file.write_text("# nothing\n")
    setup.run()


def test_an_installation_that_was_killed_is_made_anew(setup: Setup) -> None:
    (setup.root / "backend.py").write_text("import time\ntime.sleep(60)\n")
    (setup.root / "requirements.txt").write_text("# changed again\n")
    command = ["bash", str(SETUP / "environment.sh")]
    running = subprocess.Popen(
        command, cwd=setup.root, env=setup.env, start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: setup.stamp.read_text() == "installing\n", "the installation")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    (setup.root / "backend.py").write_text(BACKEND)
    assert "Creating .venv" in setup.run()
    assert setup.works()
    assert setup.run() == ""


def test_a_project_that_was_moved_wants_a_venv_of_its_own(setup: Setup, tmp_path: Path) -> None:
    """Without a Python to make it with, which saves the time and leaves the old one as it is."""
    home, env = setup.root, setup.env
    setup.root = home.rename(home.with_name("moved"))
    setup.env = {"PATH": tools_without_python(tmp_path)}
    assert "no Python 3.11 or newer" in setup.run(check=69)
    setup.root, setup.env = setup.root.rename(home), env
    assert setup.run() == ""


def test_the_venv_of_another_project_is_not_emptied_through_a_link(setup: Setup, tmp_path: Path) -> None:
    other = Setup(tmp_path / "other")
    (other.root / ".venv").symlink_to(setup.root / ".venv")
    said = other.run(check=65)
    assert f"belongs to {setup.root}" in said
    assert setup.works()


def tools_without_python(folder: Path) -> str:
    for name in ("bash", "dirname", "sed", "cat", "flock"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


def test_a_python_that_does_not_run_or_is_too_old_is_passed_over(tmp_path: Path) -> None:
    """pyenv's shims exist for versions that are not selected, and refuse to run."""
    setup = Setup(tmp_path / "project")
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    setup.env = {"PATH": tools_without_python(tmp_path)}
    assert "no Python 3.11 or newer" in setup.run(check=69)
    runs = '#!/bin/sh\ncase "$2" in venv) exit 3 ;; --version) echo Python 3.11.0 ;; esac\n'
    (tmp_path / "python3.11").write_text(runs)
    setup.run(check=3)  # the code of its `-m venv`


# The test command.


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    """A project whose tools only write down how they were called; mypy fails when told to."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    shutil.copy(ROOT / "run_tests.sh", tmp_path)
    (tmp_path / SETUP).mkdir(parents=True)
    shutil.copy(ROOT / SETUP / "run_tests.sh", tmp_path / SETUP)
    (tmp_path / SETUP / "environment.sh").write_text('echo "environment $*" >>calls\n')
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "tests/a").mkdir(parents=True)
    for file, mark in (("a/test_alone", "alone"), ("test_other", "slow")):
        (tmp_path / f"tests/{file}.py").write_text(f"@pytest.mark.{mark}\n")
    for tool in ("ruff", "mypy", "shellcheck", "python"):
        script = f'#!/bin/sh\necho "{tool} $*" >>calls\n[ ! -e fail-{tool} ]\n'
        (tmp_path / ".venv/bin" / tool).write_text(script)
        (tmp_path / ".venv/bin" / tool).chmod(0o755)
    return tmp_path


def called(project: Path, *command: str) -> tuple[int, list[str]]:
    done = subprocess.run(["bash", *command], cwd=project, capture_output=True, check=False)
    return done.returncode, (project / "calls").read_text().splitlines()


def test_the_test_command_checks_everything_and_ci_calls_it(checks: Path) -> None:
    code, calls = called(checks, ".ci/run")
    assert code == 0
    checked = ["ruff check .", "ruff format --check .", "mypy --num-workers 2"]
    assert calls[:4] == ["environment --dev", *checked]
    assert calls[4].split()[0] == "shellcheck"
    assert sorted(calls[4].split()[1:]) == [
        "./run_tests.sh", "./scripts/shell/setup/environment.sh",
        "./scripts/shell/setup/run_tests.sh", ".ci/run",
    ]  # fmt: skip
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    together = f"-n {min(cores + 1, 4)} --dist loadfile --no-loadscope-reorder"
    assert calls[5] == f"python -m pytest -m not alone {together}"
    assert calls[6:] == ["python -m pytest -m alone -n 2 --dist loadfile tests/a/test_alone.py"]


def test_the_full_sweeps_are_asked_for_by_one_word(checks: Path) -> None:
    code, calls = called(checks, "run_tests.sh", "--full")
    assert (code, len(calls)) == (0, 7)
    assert calls[5].endswith(" --no-loadscope-reorder --full")
    assert calls[6] == "python -m pytest -m alone -n 2 --dist loadfile --full tests/a/test_alone.py"


def test_arguments_go_to_pytest_alone(checks: Path) -> None:
    code, calls = called(checks, "run_tests.sh", "tests/test_x.py", "-k", "two words")
    assert code == 0
    assert calls == ["environment --dev", "python -m pytest tests/test_x.py -k two words"]


@pytest.mark.parametrize("tool", ["ruff", "mypy", "shellcheck", "python"])
def test_each_check_can_fail_the_command(checks: Path, tool: str) -> None:
    (checks / f"fail-{tool}").touch()
    assert called(checks, "run_tests.sh")[0] == 1
