"""Only its owner can use the embedded server: as root and not, with short and long paths, beside another user's.

Other users are children of this process that gave up being root: an interpreter of its own might not be theirs to run.
"""

import os
import pickle
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_pipeline.adapters import embedded
from campaign_pipeline.adapters.embedded import EmbeddedServer, EmbeddedServerFailed, running_pid

pytestmark = pytest.mark.slow

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY, OTHER = 65534, 2  # `nobody`, and `bin`: users that every Linux has

LONG = "a-folder-with-quite-a-long-name/" * 3


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can traverse, like /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="private-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def programs_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other users run the programs that root's server runs: this checkout may not be theirs to read."""
    programs = embedded._programs(embedded.NEWEST, embedded._Owner.of(Path("/nowhere")))
    monkeypatch.setattr(embedded, "_programs", lambda *_: programs)


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """Do something as another user, in a child; return its result, or the name of its error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                result = work()
            except (OSError, RuntimeError, psycopg.Error) as error:
                result = f"{type(error).__name__}: {error}"
            os.write(write, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(told)  # noqa: S301 (of our own child)


def connect(url: str) -> str:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    return str(row[0])


def modes(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.parents)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder from initdb, to be copied: that takes a tenth of the time."""
    home = tmp_path_factory.mktemp("made")
    started(home).leave()
    return home / "postgres"


def with_data(home: Path, made: Path, uid: int | None = None) -> Path:
    """The same home, with a copy of that data folder."""
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(made), str(home / "postgres")], check=True)
    if uid is not None:
        subprocess.run(["chown", "-R", f"{uid}:{uid}", str(home)], check=True)
    return home


def started(home: Path) -> EmbeddedServer:
    server = EmbeddedServer(home / "postgres")
    server.start()
    return server


@pytest.mark.parametrize("below", ["home", f"{LONG}home"], ids=["short", "long"])
def test_it_lies_in_private_folders_and_changes_no_other(place: Path, made: Path, below: str) -> None:
    home = with_data(place / "closed" / below, made)
    (place / "closed").chmod(0o700)
    before = modes(home)
    server = started(home)
    try:
        assert connect(server.url()) == "postgres"
        socket = server.url().split("host=")[1].replace("%2F", "/")
        assert len(f"{socket}/.s.PGSQL.5432") < 104
        for folder in (server.data, Path(socket), home / "postgres"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert modes(home) == before
        hba = [line for line in (server.data / "pg_hba.conf").read_text().splitlines() if not line.startswith("#")]
        assert hba == ["local all all peer map=campaign", "local replication all peer map=campaign"]
    finally:
        assert server.leave()
    assert not (socket != str(server.data) and Path(socket).exists())


@as_root
@pytest.mark.parametrize("below", ["home", f"{LONG}home"], ids=["short", "long"])
def test_another_user_cannot_connect_even_where_the_folders_are_open(place: Path, made: Path, below: str) -> None:
    server = started(with_data(place / below, made))
    try:
        socket = Path(server.url().split("host=")[1].replace("%2F", "/"))
        assert "Permission denied" in as_user(NOBODY, lambda: connect(server.url()))
        # The second lock: the kernel says who calls. Opened here by hand, as a careless administrator might.
        temporary = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 (only looked at)
        for folder in (socket, *socket.parents):
            ours = any(folder.is_relative_to(root) for root in temporary)
            if ours and stat.S_IMODE(folder.stat().st_mode) & 0o001 == 0:
                folder.chmod(0o711)
        (socket / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in as_user(NOBODY, lambda: connect(server.url()))
        assert connect(server.url()) == "postgres"
    finally:
        assert server.leave()


@as_root
@pytest.mark.usefixtures("programs_for_all")
def test_it_runs_as_its_users_own_where_that_is_not_root_and_two_users_have_one_each(place: Path, made: Path) -> None:
    def use() -> Any:
        server = started(place / str(os.geteuid()))
        owner = (server.data.stat().st_uid, Path(f"/proc/{running_pid(server.data)}").stat().st_uid)
        return owner, connect(server.url()), server.url(), server.leave()

    for uid in (NOBODY, OTHER):
        with_data(place / str(uid), made, uid).chmod(0o700)
    root = started(with_data(place / "root", made))
    try:
        for uid in (NOBODY, OTHER):
            owner, user, url, stopped = as_user(uid, use)
            assert (owner, user, stopped) == ((uid, uid), "postgres", True)
            assert url != root.url()
            assert "Permission denied" in as_user(uid, lambda: connect(root.url()))
        assert connect(root.url()) == "postgres"
    finally:
        root.leave()


def test_an_earlier_versions_folder_is_secured_and_keeps_its_data(place: Path, made: Path) -> None:
    server = started(with_data(place / "home", made))
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    server.leave()
    trusting = "# as initdb wrote it\nlocal all all trust\nhost all all 127.0.0.1/32 trust # of old\n"
    own = "local crm guest peer map=guests\n"
    (server.data / "pg_hba.conf").write_text(trusting + own)
    (server.data / "pg_ident.conf").write_text("# nothing\nguests visitor guest\n")
    (place / "home" / "postgres").chmod(0o755)
    again = started(place / "home")
    try:
        with psycopg.connect(again.url()) as connection:
            assert connection.execute("SELECT n FROM kept").fetchone() == (42,)
            rules = connection.execute("SELECT type, auth_method FROM pg_hba_file_rules").fetchall()
            assert connection.execute("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL").fetchone() == (
                0,
            )
        assert rules == [("local", "peer")] * 3
        assert "guests visitor guest" in (again.data / "pg_ident.conf").read_text()
        assert stat.S_IMODE((place / "home" / "postgres").stat().st_mode) == 0o700
        # And one that is still running with its old settings.
        (again.data / "pg_hba.conf").write_text(trusting)
        joined = EmbeddedServer(place / "home" / "postgres")
        joined.start()
        assert "trust" not in (again.data / "pg_hba.conf").read_text()
        joined.leave()
    finally:
        assert again.leave()


@as_root
@pytest.mark.usefixtures("programs_for_all")
def test_another_users_folder_is_refused_and_root_leaves_it_to_its_owner(place: Path, made: Path) -> None:
    home = with_data(place / "home", made, NOBODY)
    assert "belongs to the user with the id 65534" in as_user(OTHER, lambda: started(home).leave())
    server = started(home)
    assert server.data.stat().st_uid == NOBODY
    server.leave()
    assert as_user(NOBODY, lambda: started(home).leave()) is True


@as_root
def test_root_follows_no_link_that_the_owner_of_the_data_planted(place: Path, made: Path) -> None:
    home = with_data(place / "home", made, NOBODY)
    treasure = place / "treasure"
    treasure.write_text("of root alone")
    treasure.chmod(0o600)
    folder = home / "postgres"
    (folder / "data" / "pg_hba.conf").write_text("local all all trust\n")
    for planted in (folder / "data" / "pg_hba.conf.new", folder / "socket.new"):
        planted.symlink_to(treasure)
    started(home).leave()
    (folder / "users.lock").unlink(missing_ok=True)
    (folder / "users.lock").symlink_to(treasure)
    with pytest.raises(OSError, match="symbolic links"):
        started(home)
    assert (treasure.read_text(), treasure.stat().st_uid) == ("of root alone", 0)


@as_root
def test_programs_that_its_user_cannot_reach_are_copied_once(
    place: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_data(place / "home", made)
    monkeypatch.setattr(embedded, "PROGRAMS_FOR_ALL", place / "programs")
    monkeypatch.setattr(embedded, "_may_run", lambda *_: False)
    for _ in range(2):
        server = started(place / "home")
        assert Path(f"/proc/{server.server_pid}/exe").resolve().is_relative_to(place / "programs")
        server.leave()
    assert len(list((place / "programs").iterdir())) == 1


def test_a_failure_is_one_sentence_that_says_why(place: Path, made: Path) -> None:
    with (with_data(place / "home", made) / "postgres" / "data" / "postgresql.conf").open("a") as conf:
        conf.write("max_connections = many\n")
    with pytest.raises(EmbeddedServerFailed) as failed:
        started(place / "home")
    assert "max_connections" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_the_number_of_a_server_that_died_may_be_another_programs(place: Path) -> None:
    data = place / "data"
    data.mkdir()
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    assert running_pid(data) is None
