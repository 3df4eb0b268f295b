"""One connection to Redis through redis-py: who is at its other end, errors with a remedy, one attempt to reconnect.

Rules
- A link holds one connection and knows the run id of the process behind it, asked at connecting. redis-py's retries
  and its pool's renewal are off: they would reconnect behind the back of a caller whose arguments name a run.
- A connection that proves dead when it is used again is opened anew once: every command of the log may be repeated.
- What redis-py raises leaves here as one of buffer_types' errors; other error replies leave as they came.
- One user at a time (a lock).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script as RegisteredScript
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.retry import Retry

from outlast.buffer.scripts import Script
from outlast.buffer.types import BufferFull, BufferMisconfigured, BufferUnavailable, Contact, GradientLogError

Arg = bytes | str | int
Reply = Any
T = TypeVar("T")

REFUSED_FOR_NOW = (BusyLoadingError, ReadOnlyError, MasterDownError, ClusterDownError, TryAgainError)
REFUSED_FOR_NOW_CODES = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "READONLY", "TRYAGAIN")
NOT_ACCEPTED = (AuthenticationError, AuthorizationError, NoPermissionError)
NOT_ACCEPTED_CODES = ("DENIED", "NOAUTH", "NOPERM", "WRONGPASS")


@dataclass(frozen=True)
class Target:
    """A url as redis-py reads it: `unix:///path?db=0`, `redis://user:password@host:6379/0`, `rediss://…` (TLS)."""

    connection_class: type[redis.Connection]
    options: Mapping[str, Any] = field(repr=False)
    shown: str

    @staticmethod
    def parse(url: str) -> Target:
        """Raises `BufferMisconfigured` for another scheme, a malformed url, or an option that redis-py has not."""
        try:
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
            kind = options.pop("connection_class", redis.Connection)
            if not (options.get("path") or options.get("host")):
                raise ValueError("it names no host or path")
            kind(**options)  # connects to nothing: only to see whether it takes the options
        except (TypeError, ValueError, redis.RedisError) as error:
            # What precedes an @ may be a password, and the error may quote it.
            shown, why = (url, f" ({error})") if "@" not in url else ("…@" + url.rsplit("@", 1)[1], "")
            raise BufferMisconfigured(
                f"recovery.buffer.url: {shown!r} is no Redis url{why}; use unix:///path/to/socket, "
                "redis://:password@host:6379/0, or rediss://… for TLS"
            ) from None
        path = options.get("path")
        return Target(kind, options, f"unix:{path}" if path else f"{options['host']}:{options.get('port', 6379)}")

    @property
    def on_this_host(self) -> bool:
        return "path" in self.options or self.options["host"] in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        return self.shown


class _OneConnection(redis.ConnectionPool):
    """A pool of the one connection that a link holds, handed out as it is: never checked, never replaced."""

    held: Any

    def get_connection(self, *args: Any, **options: Any) -> Any:
        return self.held

    def release(self, connection: Any) -> None:
        pass


class Link:
    """Opened on first use, again after a loss. Errors: `BufferUnavailable`, `BufferMisconfigured`, `BufferFull`."""

    def __init__(self, target: Target, timeout_s: float = 5.0, contact: Contact | None = None) -> None:
        self.target = target
        self.contact = Contact() if contact is None else contact
        self.timeout_s = timeout_s
        self.run_id = ""
        ours = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,  # replies only: nothing may arrive that nobody asked for
        }
        pool = _OneConnection(connection_class=target.connection_class, **{**target.options, **ours})
        self._connection: Any = pool.make_connection()
        pool.held = self._connection
        self._client = redis.Redis(connection_pool=pool)
        self._scripts: dict[Script, RegisteredScript] = {}
        self._lock = threading.RLock()
        self._connected = False

    def use(self, run: Callable[[redis.Redis, str], T]) -> T:
        """Return `run(client, run id of the Redis that is connected)`; `run` may be called twice."""
        with self._lock:
            reused = self._connected
            while True:
                try:
                    if not self._connected:
                        self._connect()
                    answer = run(self._client, self.run_id)
                    self.contact.answered()
                    return answer
                except redis.ResponseError as error:  # the connection is good
                    self.contact.refused()
                    raise as_buffer_error(error, self.target) from error
                except (redis.TimeoutError, TimeoutError, BlockingIOError) as error:
                    self.close()
                    raise self._unavailable(f"did not answer in {self.timeout_s:g} s") from error
                except InvalidResponse as error:  # an address that was Redis' a moment ago may be another's
                    self.close()
                    raise self._unavailable(f"is no Redis: what answers there speaks otherwise ({error})") from error
                except (redis.ConnectionError, OSError) as error:
                    self.close()
                    typed = as_buffer_error(error, self.target)
                    if isinstance(typed, GradientLogError):  # a refusal, too: it reads its file, say
                        self.contact.refused()
                        raise typed from error
                    if not reused:
                        raise self._unavailable(f"cannot be reached ({error})") from error
                    reused = False
                except BaseException:
                    self.close()
                    raise

    def call(self, *args: Arg) -> Reply:
        """One command."""
        return self.use(lambda client, _: client.execute_command(*args))  # type: ignore[no-untyped-call]

    def script(self, script: Script, key: str, arguments: Callable[[str], tuple[Arg, ...]]) -> Reply:
        """Run a script on `key` with `arguments(run id)`; redis-py loads it into a Redis that does not know it."""

        def run(client: redis.Redis, run_id: str) -> Reply:
            registered = self._scripts.get(script)
            if registered is None:
                registered = self._scripts[script] = client.register_script(script.text)
            return registered(keys=[key], args=arguments(run_id))

        return self.use(run)

    def close(self) -> None:
        with self._lock:
            self._connected = False
            self._connection.disconnect()

    def _connect(self) -> None:
        self._connection.connect()
        try:
            self.run_id = str(self._client.info("server").get("run_id", ""))
        except BaseException:
            self.close()
            raise
        self._connected = True

    def _unavailable(self, fact: str) -> BufferUnavailable:
        self.contact.missed()
        return BufferUnavailable(
            f"Redis at {self.target} {fact}; gradients are kept and sent again when it is back: "
            "check its process, its network and recovery.buffer.url"
        )


def _code(error: Exception) -> str:
    """Redis' word for it; of what stopped a script in its middle it stands within the message."""
    within = re.search(r"@user_script: ?\d+: -([A-Z]+) ", str(error))
    return within[1] if within else str(error).split(" ", 1)[0]


def as_buffer_error(error: Exception, target: Target) -> Exception:
    """The typed error for a reply that any command may get; the reply itself when it is of no such kind."""
    code = _code(error)
    if isinstance(error, REFUSED_FOR_NOW) or code in REFUSED_FOR_NOW_CODES:
        return BufferUnavailable(
            f"Redis at {target} refuses for now: {error}; gradients are kept and sent again"
            + ("; free its disk" if code == "MISCONF" else "")
        )
    if isinstance(error, NOT_ACCEPTED) or code in NOT_ACCEPTED_CODES:
        return BufferMisconfigured(
            f"Redis at {target} does not accept us: {error}; check user and password of recovery.buffer.url"
        )
    if isinstance(error, OutOfMemoryError) or code == "OOM":
        return BufferFull(
            f"Redis at {target} is out of memory: its maxmemory must hold recovery.buffer.maxBytes, two snapshots "
            "and slack (outlast.buffer.types.redis_maxmemory); raise it, or lower maxBytes"
        )
    return error
