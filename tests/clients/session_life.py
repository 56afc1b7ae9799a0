"""A small session life with redis-py, standalone (RESP2 and RESP3) and cluster, against a running Holdfast.

Usage: session_life.py FLAT_HOST:PORT CLUSTER_HOST:PORT [CA_FILE]
With CA_FILE it speaks TLS and trusts nothing but that authority.
Prints `N passed, 0 failed` or fails at the first surprise.
"""

import sys
import time

import redis
from redis.cluster import RedisCluster

passed = 0
tls = {"ssl": True, "ssl_ca_certs": sys.argv[3]} if len(sys.argv) > 3 else {}


def expect(actual, wanted, what):
    global passed
    if actual != wanted:
        sys.exit(f"{what}: wanted {wanted!r}, got {actual!r}")
    passed += 1


def life(client, tag):
    """What a login, some page views, a regeneration and a logout send."""
    key = f"session:{tag}:{time.time_ns()}"
    value = bytes(range(256)) * 4
    expect(client.get(key), None, "a session that does not exist")
    expect(client.set(key, value, ex=60, nx=True), True, "create")
    expect(client.set(key, b"other", ex=60, nx=True), None, "create twice")
    expect(client.get(key), value, "load")
    expect(client.expire(key, 120), True, "touch")
    expect(100 < client.ttl(key) <= 120, True, "ttl after touch")
    expect(client.set(key, value, ex=60), True, "save unchanged")
    expect(0 < client.pttl(key) <= 60_000, True, "pttl after save")
    expect(client.getex(key, ex=300), value, "getex")
    expect(client.persist(key), True, "persist")
    expect(client.ttl(key), -1, "ttl after persist")
    expect(client.exists(key), 1, "exists")
    expect(client.setex(key, 30, b"second"), True, "setex")
    expect(client.getdel(key), b"second", "getdel")
    expect(client.exists(key), 0, "gone")
    expect(client.incr(key), 1, "incr")
    expect(client.expire(key, 60), True, "expire a counter")
    expect(client.incrby(key, 9), 10, "incrby")
    expect(client.decr(key, 3), 7, "decrby")
    expect(0 < client.ttl(key) <= 60, True, "a counter keeps its time")
    expect(client.append(key, "42"), 3, "append")
    expect(client.getrange(key, -2, -1), b"42", "getrange")
    expect(client.delete(key), 1, "delete the counter")
    expect(client.set(key, b"short", px=150), True, "short session")
    time.sleep(0.8)
    expect(client.get(key), None, "expired")


def flat(host, port, protocol):
    client = redis.Redis(host=host, port=port, protocol=protocol, **tls)
    expect(client.ping(), True, "ping")
    life(client, f"flat{protocol}")
    keys = [f"many:{protocol}:{i}" for i in range(300)]
    with client.pipeline(transaction=False) as pipe:
        for i, key in enumerate(keys):
            pipe.set(key, f"v{i}", ex=600)
        expect(all(pipe.execute()), True, "pipelined sets")
    expect(client.mget(keys)[299], b"v299", "mget across slots")
    found = set(client.scan_iter(match=f"many:{protocol}:*", count=50))
    expect(found, {key.encode() for key in keys}, "scan finds every session")
    lock = client.lock(f"lock:{protocol}", timeout=5, blocking=False)
    expect(lock.acquire(), True, "lock")
    expect(client.lock(f"lock:{protocol}", timeout=5, blocking=False).acquire(), False, "lock twice")
    lock.release()
    expect(client.exists(f"lock:{protocol}"), 0, "lock released by its script")
    expect(client.delete(*keys), 300, "delete across slots")
    other = redis.Redis(host=host, port=port, protocol=protocol, db=3, **tls)
    other.set("in-three", "x")
    expect(client.get("in-three"), None, "databases are apart")
    expect(other.flushdb(), True, "flushdb")
    expect(other.get("in-three"), None, "flushed")
    info = client.info()
    expect(info["redis_mode"], "standalone", "info")
    try:
        client.execute_command("NOSUCH", "a")
        sys.exit("an unknown command was accepted")
    except redis.ResponseError as error:
        expect("unknown command" in str(error), True, "unknown command")


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    for protocol in (2, 3):
        flat(host, int(port), protocol)
    host, port = sys.argv[2].rsplit(":", 1)
    life(RedisCluster(host=host, port=int(port), **tls), "cluster")
    print(f"{passed} passed, 0 failed")


main()
