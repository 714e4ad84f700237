"""The only place that starts or joins Ray."""

from __future__ import annotations

import functools
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.errors import Halted, UserError
from seqtune.interrupts import ENDS
from seqtune.machines import Machine, kinds, machines
from seqtune.storage import own_scratch
from seqtune.versions import COMMIT, git_commit

PACKAGE = Path(__file__).parent
NO_GPU = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # who was given none sees none
MARK = "SEQTUNE_RAY"  # in the environment of all processes of the Ray that a process has started
LOOPBACK = "127.0.0.1"
A_SOCKET = "/ray/session_2026-11-27_08-02-13_170312_4194304/sockets/plasma_store"
LONGEST_SOCKET = 107  # bytes of its path, as Linux has it
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has everything that they would write
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports why, and no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is answered by the study
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_task_oom_retries": "2",  # not for ever: of a task that the memory monitor ends
    **NO_GPU,
}


@dataclass(frozen=True)
class Joined:
    """A Ray that this process is part of."""

    machines: list[Machine]
    pulse: Pulse
    grows: bool  # it is a cluster: machines may join it
    kinds: list[Machine]  # of which its autoscaler can start more


class Pulse:
    """Looks every second whether Ray's own processes still answer: their names -> their ports.

    Ray itself notices after a minute, if at all, and then ends this process with a page of its
    state. Where they have been silent for ``patience`` seconds, ``check`` raises Halted. Where
    nobody calls it, or stopping takes too long, ``abandon`` gets the reason, to end the process.
    """

    GRACE = 8.0  # seconds to stop in order

    def __init__(
        self,
        places: Mapping[str, tuple[str, int]],
        patience: float,
        abandon: Callable[[str], None],
    ) -> None:
        self._places, self._patience, self._abandon = places, patience, abandon
        self._lost = ""
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="pulse", daemon=True).start()

    def check(self) -> None:
        """Raises Halted where Ray is gone."""
        if self._lost:
            raise Halted(self._lost)

    def stop(self, mark: str) -> None:
        """Looks no more, and ends what Ray has left where it has died."""
        self._over.set()
        if self._lost:
            _end_all(mark)

    def _watch(self) -> None:
        heard = dict.fromkeys(self._places, time.monotonic())
        while not self._lost and not self._over.wait(1.0):
            for name, place in self._places.items():
                with suppress(OSError):
                    socket.create_connection(place, timeout=5).close()
                    heard[name] = time.monotonic()
                if time.monotonic() - heard[name] > self._patience:
                    self._lost = f"{name} has ended, and nothing runs without it"
                    break
        if self._lost and not self._over.wait(self.GRACE):
            self._abandon(self._lost)


@contextmanager
def connected(
    cpus: float | None = None,
    dashboard: bool = False,
    abandon: Callable[[str], None] = lambda reason: None,
) -> Iterator[Joined]:
    """Joins the cluster at ``RAY_ADDRESS``, or starts Ray on this machine.

    Ray Train needs the ``dashboard``: it asks its State API whether a trial was stopped, to give
    back what the workers hold, and looks for the API itself, in vain where several Rays run on the
    machine. So each process is told the address.

    Without an address Ray would join whatever cluster it finds, hence "local". Workers get the
    code that runs here, whatever is installed where they are: by ``PYTHONPATH`` on this machine,
    uploaded to a cluster elsewhere.

    SIGTERM, by which ``ray job stop``, Slurm and Kubernetes ask a program to end, and SIGHUP, which
    a terminal sends when it is closed, become the KeyboardInterrupt of Ctrl-C.

    What Ray writes to the terminal goes to a file. ``abandon`` is called with the reason where Ray
    has died and took this process's main thread with it: see ``Pulse``.

    Raises:
        UserError: where the cluster cannot be joined, or others can read Ray's token.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    options = _options(address, cpus, dashboard)
    mark = os.environ[MARK] = secrets.token_hex(8)
    with ExitStack() as stack:
        give_back = stack.enter_context(_aside())
        _tame()
        _start(options, mark)

        def lost(reason: str) -> None:
            _end_all(mark)
            give_back()
            abandon(reason)

        # A head elsewhere may come back, and Ray waits for it a minute.
        pulse = Pulse(_places(), 3.0 if address == "local" else 40.0, lost)
        stack.callback(pulse.stop, mark)
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            for number in ENDS:
                signal.signal(number, signal.default_int_handler)
        for name in ("ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield Joined(machines(), pulse, grows=address != "local", kinds=kinds())


def _start(options: dict[str, Any], mark: str) -> None:
    """Starts or joins Ray; what keeps it from that is a UserError."""
    import ray

    local = options["address"] == "local"
    try:
        with _loopback() if local else nullcontext():
            ray.init(**options)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        if local:
            raise _unable(error, mark) from error
        reason = "no Ray head, or one with another token"
        raise _closed(options["address"], reason) from error
    except Exception as error:  # Ray raises no other kind where a process of it does not come up
        if local:
            raise _unable(error, mark) from error
        raise


@contextmanager
def _loopback() -> Iterator[None]:
    """Lets this machine alone reach a Ray that is started within the block.

    Ray 2.60.0 does listen where its node's address says, but takes 127.0.0.1 for a mistake, and
    puts an address in its place that others can reach.
    """
    from ray._private import services

    reachable = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = reachable


def _unable(error: Exception, mark: str) -> UserError:
    """Ends what has started of a Ray; returns what to say, with the limits that may be why."""
    _end_all(mark)
    limits = {"v": resource.RLIMIT_AS, "f": resource.RLIMIT_FSIZE, "n": resource.RLIMIT_NOFILE}
    set_to = {letter: resource.getrlimit(one)[0] for letter, one in limits.items()}
    set_to["n"] = set_to["n"] if set_to["n"] < 256 else resource.RLIM_INFINITY
    low = [letter for letter, limit in set_to.items() if limit != resource.RLIM_INFINITY]
    why = (
        f"; ulimit -{low[0]} may be too low for it: ulimit -{low[0]} says what it is" if low else ""
    )
    return UserError(f"Ray cannot start on this machine: {str(error).splitlines()[0][:120]}{why}")


def _options(address: str, cpus: float | None, dashboard: bool) -> dict[str, Any]:
    """Returns what ``ray.init`` is told; what is wrong with an address or a token is raised."""
    keep_token_private(make=address == "local")
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    options |= {"logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        options |= {"include_dashboard": dashboard, "num_cpus": cpus}
        options["_node_ip_address"] = LOOPBACK
        if (place := _short_folder()) is not None:
            options["_temp_dir"] = place
        paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    else:
        _knock(address)
        variables = dict(NO_GPU)
        if COMMIT not in os.environ:  # Ray takes a variable from the job or from here, not both
            variables[COMMIT] = git_commit()
        options["runtime_env"] = {"py_modules": [str(PACKAGE)], "env_vars": variables}
    if dashboard:
        hook = {"worker_process_setup_hook": keep_address}
        options["runtime_env"] = options.get("runtime_env", {}) | hook
    return options


def _short_folder() -> str | None:
    """Returns where Ray's sockets fit, where they would not in the folder that Ray takes itself.

    A temporary folder of 40 characters, usual in a batch system, is too long already.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    fits = len(f"{usual}{A_SOCKET}".encode()) <= LONGEST_SOCKET or not Path("/tmp").is_dir()
    return None if fits else str(own_scratch("/tmp") / "ray")


def _places() -> dict[str, tuple[str, int]]:
    """Returns where Ray's own processes listen."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    places = {"Ray's head process, gcs_server,": (host, int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            own = node["NodeManagerAddress"], int(node["NodeManagerPort"])
            places["Ray's process on this machine, raylet,"] = own
    return places


def _end_all(mark: str) -> None:
    """Ends what this process and its Ray have started here: without a raylet nobody else does."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or it has just ended
            inherited = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            if inherited and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def _tame() -> None:
    """Keeps Ray's processes from the terminal: what they print, and the signals that it sends.

    Seen to work with Ray 2.60.0, which prints what it tells of workers and machines to stdout,
    whatever ``log_to_driver`` says: here to stderr, which is a file by then. And it has its
    processes ignore Ctrl-C alone: SIGTERM and SIGHUP, sent to the group of this process, would end
    them before this one can stop in order. They get a group of their own where the kernel ends
    them with this process.
    """
    from ray._private import services, utils, worker

    if hasattr(worker, "tamed"):
        return
    worker.tamed = True  # type: ignore[attr-defined]
    show = worker.print_to_stdstream

    def aside(data: dict[str, Any], ignore_prefix: bool) -> None:
        show({**data, "is_err": True}, ignore_prefix)

    worker.print_to_stdstream = aside
    if utils.detect_fate_sharing_support():
        start = functools.partial(services.ConsolePopen, process_group=0)
        services.ConsolePopen = start  # type: ignore[misc,assignment]


@contextmanager
def _aside() -> Iterator[Callable[[], None]]:
    """Sends what is written to stderr, by libraries in C++ too, to a file of this user's.

    Yields what ends that at once. The file stays where the block ends with an error.
    """
    path = own_scratch() / f"ray-{os.getpid()}.log"
    sys.stderr.flush()
    terminal = os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    os.close(file)

    def give_back() -> None:
        sys.stderr.flush()
        os.dup2(terminal, 2)

    try:
        yield give_back
    except Exception:
        give_back()
        raise
    except BaseException:  # Ctrl-C and the like
        give_back()
        path.unlink(missing_ok=True)
        raise
    else:
        give_back()
        path.unlink(missing_ok=True)
    finally:
        os.close(terminal)


def keep_token_private(*, make: bool) -> None:
    """Refuses a token of Ray that others can read; ``make`` makes one where there is none.

    One that Ray makes can be read by all users of the machine. Whoever has it can run code in a
    study.

    Raises:
        UserError: there is a token that others can read.
    """
    if "RAY_AUTH_TOKEN" in os.environ or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if make and not named and not path.exists():
        with suppress(OSError):  # somebody was faster, or Ray says what is wrong with the place
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "w") as out:
                out.write(secrets.token_hex(32))
    if path.exists() and path.stat().st_mode & 0o077:
        raise UserError(
            f"{path}: others on this machine can read Ray's token, and with it run code in your "
            f"studies; chmod 600 {path} mends it, and so does deleting it"
        )


def _knock(address: str) -> None:
    """Finds out at once where nobody is: Ray would try for two minutes."""
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address}: not the address of a Ray head; write HOST:PORT, for example "
            "127.0.0.1:6379, or unset it to run on this machine"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _closed(address, error.strerror or str(error)) from None


def _closed(address: str, reason: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS={address}: cannot join this Ray cluster ({reason}); check the address, "
        "RAY_AUTH_MODE=token and the token (cluster/README.md says how), or unset it to run on "
        "this machine"
    )


def in_job() -> bool:
    """Says whether this is a job of ``ray job submit``, whose folder is a temporary copy."""
    # The first is set by cluster/submit.sh. The second is Ray's own and not documented: seen to be
    # there, for a job of somebody's own `ray job submit`, in Ray 2.60.0.
    return "SEQTUNE_JOB" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_lasting(place: str, given: str | None) -> None:
    """Refuses a relative path in a job, which would vanish with the job's folder."""
    path = (given or "/").removeprefix("sqlite:///")
    if in_job() and "://" not in path and not Path(path).expanduser().is_absolute():
        lasting = str(given).removesuffix(path) + f"/shared/{Path(path).name}"
        raise UserError(
            f"{place} {given}: the working folder of a Ray job is temporary; give an absolute path "
            f"that every machine of the cluster sees, for example {place} {lasting}"
        )


def keep_address() -> None:
    """Notes in a worker's environment to which Ray it belongs."""
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
