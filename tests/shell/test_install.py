"""tools/install.sh where something is missing; nothing is really installed here."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "tools" / "install.sh"
SYSTEM_TOOLS = (
    "awk bash basename cat cut df dirname du env flock ls mkdir mv rm sed sha256sum".split()
)


@pytest.fixture
def machine(tmp_path: Path):
    return Machine(tmp_path)


class Machine:
    """A PATH with the system's tools and nothing else, an empty home, no environment."""

    def __init__(self, tmp_path: Path):
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        self.venv = tmp_path / "venv"
        (tmp_path / "home").mkdir()
        for name in SYSTEM_TOOLS:
            path = shutil.which(name)
            assert path, f"{name} is missing on this machine"
            (self.bin / name).symlink_to(path)
        self.env = {
            "PATH": str(self.bin),
            "HOME": str(tmp_path / "home"),
            "ESPNET_EXT_VENV": str(self.venv),
        }

    def add(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.bin}/bash\n{script}\n")
        path.chmod(0o755)

    def add_python(self, name: str = "python3.12") -> None:
        self.add(name, f'exec "{sys.executable}" "$@"')

    def add_uv(self, on_install: str) -> None:
        """A uv whose `pip install` does ``on_install``; $venv is the environment."""
        self.add(
            "uv",
            f'venv={self.venv}\ncase "$1" in\n--version) echo uv 1.0 ;;\n'
            f"pip) {on_install} ;;\n*) exit 2 ;;\nesac",
        )

    def install(self, *options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [shutil.which("bash"), INSTALL, *options],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


WORKS = 'echo called >>"$venv/calls"; echo "#!/bin/sh" >"$venv/bin/espnet-ext"; \
  chmod +x "$venv/bin/espnet-ext"'
WORKS = WORKS.replace("chmod", shutil.which("chmod") or "chmod")


def error_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1, result.stdout
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_no_python(machine):
    error = error_line(machine.install())
    assert "3.12" in error
    assert "apt-get install" in error
    assert "again" in error


def test_a_python_that_is_too_old_or_does_not_run_is_passed_over(machine):
    machine.add("python3.12", "exit 127")  # as pyenv's shims do
    machine.add("python3", "exit 1")
    assert "no Python 3.12" in error_line(machine.install())


@pytest.mark.parametrize(
    "variables",
    [{"BASHOPTS": "failglob"}, {"SHELLOPTS": "noclobber"}, {"PYTHONHASHSEED": "x"}],
    ids=" ".join,
)
def test_variables_that_change_shells_and_python(machine, variables):
    machine.add_python("python3.13")  # found after a look into pyenv's empty folder
    machine.add_uv(WORKS)
    machine.env |= variables
    for _ in range(2):
        result = machine.install()
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["python3.13", "python3"])
def test_python_by_other_names(machine, name):
    machine.add_python(name)
    machine.add_uv(WORKS)
    assert machine.install().returncode == 0


def test_python_of_pyenv(machine, tmp_path):
    folder = tmp_path / "home" / ".pyenv" / "versions" / "3.13.1" / "bin"
    folder.mkdir(parents=True)
    machine.add_python("python")
    (machine.bin / "python").rename(folder / "python")
    machine.add_uv(WORKS)
    result = machine.install()
    assert result.returncode == 0, result.stderr


def add_pyenv(machine, minor: int, reports: int) -> Path:
    """A Python of pyenv that says it is 3.``reports``; the environment tells which was taken."""
    folder = machine.venv.parent / f"home/.pyenv/versions/3.{minor}.1/bin"
    folder.mkdir(parents=True)
    machine.add("python", fake_python(reports))
    (machine.bin / "python").rename(folder / "python")
    return folder / "python"


def fake_python(minor: int) -> str:
    """Answers the question for its version as 3.``minor`` would."""
    patch = f"import sys; sys.version_info = (3, {minor}); "
    return f'[ "$1" != -c ] || exec "{sys.executable}" -c "{patch}$2" "${{@:3}}"\necho "$0 $*" >&2'


def test_python_3_12_of_pyenv_goes_before_3_13_on_the_path(machine):
    machine.add("python3.13", fake_python(13))
    machine.add("python3", fake_python(13))
    old = add_pyenv(machine, 12, 12)
    machine.add_uv(WORKS)
    machine.install()
    assert f"{old} -m venv" in Path(f"{machine.venv}.install.log").read_text()


def test_python_3_13_is_taken_where_there_is_no_3_12(machine):
    machine.add("python3", fake_python(13))
    add_pyenv(machine, 12, 11)  # a folder's name proves nothing
    machine.add_uv(WORKS)
    machine.install()
    assert f"{machine.bin}/python3 -m venv" in Path(f"{machine.venv}.install.log").read_text()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("error: command 'gcc' failed: No such file or directory", "use Python 3.12"),
        ("error: command '/usr/bin/x86_64-linux-gnu-gcc' failed with exit code 1", "compiler"),
        ("a.cpp:3: fatal error: Python.h: No such file or directory", "compiler"),
        ("error: failed to write: No space left on device (os error 28)", "a disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded", "a disk is full"),
        ("error: dns error: failed to lookup address", "check the network"),
    ],
)
def test_a_failed_step_says_what_its_log_asks_for(machine, said, advice):
    machine.add_python()
    machine.add_uv(f'echo "{said}" >&2; exit 2')
    error = error_line(machine.install())
    assert advice in error
    assert ("network" in error) == (advice == "check the network")


def test_too_little_disk(machine):
    machine.add_python()
    machine.add_uv(WORKS)
    machine.add("df", "echo Filesystem; echo /dev/x 90000000 80000000 2097152 90% /")
    error = error_line(machine.install())
    assert "8 GB" in error
    assert "2 GB" in error
    assert not (machine.venv / "bin").exists()


@pytest.mark.parametrize(
    ("folder", "variable"), [("cache", "UV_CACHE_DIR"), ("tmp", "TMPDIR"), (None, None)]
)
def test_too_little_disk_for_what_uv_keeps_elsewhere(machine, folder, variable):
    """Each folder on a disk of its own; 500 MB are free on one of them."""
    machine.add_python()
    machine.add_uv(WORKS)
    base = machine.venv.parent
    machine.env |= {"UV_CACHE_DIR": f"{base}/cache/uv", "TMPDIR": f"{base}/tmp"}
    for name in ("cache", "tmp"):
        (base / name).mkdir()
    machine.add(
        "df",
        f'free=90000000; [ "$2" != {base}/{folder} ] || free=500000\n'
        'echo Filesystem; echo "/dev/x 90000000 1 $free 1% $2"',
    )
    result = machine.install()
    if folder is None:
        assert result.returncode == 0, result.stderr
        return
    error = error_line(result)
    assert f"the disk of {base}/{folder}" in error
    assert f"set {variable} to a folder on another disk" in error
    assert not (machine.venv / "bin").exists()


def test_no_network(machine):
    machine.add_python()
    machine.add_uv('echo "error: dns error" >&2; exit 2')
    error = error_line(machine.install())
    assert "network" in error
    assert "install espnet-ext" in error
    log = error.split("details: ")[1].split(")")[0]
    assert "dns error" in Path(log).read_text()
    # It goes on once the network is back.
    machine.add_uv(WORKS)
    assert machine.install().returncode == 0


def test_second_run_does_nothing(machine):
    machine.add_python()
    machine.add_uv(WORKS)
    assert machine.install().returncode == 0
    start = time.monotonic()
    again = machine.install()
    assert time.monotonic() - start < 5  # a second on a free machine
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert machine.install("--if_needed").stdout == ""
    assert (machine.venv / "calls").read_text() == "called\n"


def test_a_killed_install_goes_on(machine):
    machine.add_python()
    # The command is there already when the kill comes, other packages are not.
    machine.add_uv(WORKS + "; kill -9 $PPID; exit 1")
    assert machine.install().returncode == -9
    machine.add_uv(WORKS)
    result = machine.install("--if_needed")
    assert result.returncode == 0, result.stderr
    assert (machine.venv / "calls").read_text() == "called\ncalled\n"


def test_a_change_of_the_pins_installs_again(machine):
    machine.add_python()
    machine.add_uv(WORKS)
    assert machine.install().returncode == 0
    (machine.venv / ".espnet_ext_installed").write_text("digest of older pins\n")
    assert machine.install("--if_needed").returncode == 0
    assert (machine.venv / "calls").read_text() == "called\ncalled\n"


def test_an_environment_of_the_users_own_is_left_alone(machine):
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "bin" / "espnet-ext").write_text("#!/bin/sh\n")
    (machine.venv / "bin" / "espnet-ext").chmod(0o755)
    assert machine.install("--if_needed").returncode == 0
    assert [path.name for path in machine.venv.iterdir()] == ["bin"]


def test_a_folder_with_other_files_is_refused(machine):
    machine.add_python()
    machine.venv.mkdir()
    (machine.venv / "thesis.tex").write_text("precious")
    assert "other files" in error_line(machine.install())
    assert (machine.venv / "thesis.tex").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(machine):
    machine.add_python()
    machine.env["ESPNET_EXT_VENV"] = "/proc/venv"
    assert "cannot write" in error_line(machine.install())


def test_unknown_option_and_help(machine):
    assert "--help" in error_line(machine.install("--force"))
    result = machine.install("--help")
    assert result.returncode == 0
    assert "Example:" in result.stdout


def test_pins_are_exact_and_name_no_host():
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    for line in pins:
        name, version = line.split("==")
        assert name == name.strip().lower()
        assert version[0].isdigit()
        assert "/" not in line
    assert "espnet==202611" in pins
