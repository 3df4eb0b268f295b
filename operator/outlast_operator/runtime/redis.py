"""What both runtimes ask of a Redis: the settings that keep what the spec promises, whether it answers, and its end.

Whether Redis is up, and as which run, is asked through redis-py: the control plane's only use of it, imported when it
is first asked, since most jobs have no buffer.
"""

from __future__ import annotations

from outlast.buffer.types import log_prefix

APPEND_FSYNC = {"Always": "always", "EverySecond": "everysec"}  # any other durability: no append-only file


def redis_settings(durability: str, max_memory: int) -> list[str]:
    """What every Redis of a job is set to, wherever it runs."""
    settings = ["--save", "", "--maxmemory", str(max_memory), "--maxmemory-policy", "noeviction"]
    if durability not in APPEND_FSYNC:
        return [*settings, "--appendonly", "no"]
    settings += ["--appendonly", "yes", "--appendfsync", APPEND_FSYNC[durability]]
    settings += ["--auto-aof-rewrite-percentage", "100"]
    settings += ["--auto-aof-rewrite-min-size", str(max(256 << 20, max_memory // 2))]
    return [*settings, "--aof-load-truncated", "yes"]  # the torn last command was acknowledged to nobody


def redis_run_id(url: str, timeout_s: float = 1.0) -> str | None:
    """Who answers at `url` (unix, redis or rediss): its run id, or None while it is away, silent or loading."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        # Loading is told by PING alone. No retries: the watch asks again soon.
        with redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            client.ping()
            return str(client.info("server").get("run_id", "")) or None
    except (redis.RedisError, OSError, TypeError, ValueError):  # the last two: no url; the servers say so
        return None


def pause_appends(url: str, job_uid: str, timeout_s: float = 1.0) -> bool:
    """Let a job's log take no gradient any more: workers keep theirs. False when Redis did not answer."""
    return _ask(url, timeout_s, "HSET", f"{log_prefix(job_uid)}log", "paused", "1")


def shut_down(url: str, timeout_s: float = 5.0) -> bool:
    """End a Redis whose data nobody needs any more. False when it did not answer."""
    return _ask(url, timeout_s, "SHUTDOWN", "NOSAVE")


def _ask(url: str, timeout_s: float, *command: str) -> bool:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        with redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            client.execute_command(*command)
    except redis.ConnectionError:
        return command[0] == "SHUTDOWN"  # its answer is that it is gone
    except (redis.RedisError, OSError, ValueError):
        return False
    return True
