// A small session life with ioredis, standalone and cluster, against a running Holdfast.
//
// Usage: node session_life.mjs FLAT_HOST:PORT CLUSTER_HOST:PORT [CA_FILE]
// With CA_FILE it speaks TLS and trusts nothing but that authority.
// Prints `N passed, 0 failed` or fails at the first surprise.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import assert from "node:assert/strict";

// Resolved from the working directory, where the test script installed it.
const Redis = createRequire(process.cwd() + "/")("ioredis");
let passed = 0;
const tls = process.argv[4] ? { tls: { ca: readFileSync(process.argv[4]) } } : {};

function expect(actual, wanted, what) {
  assert.deepEqual(actual, wanted, what);
  passed += 1;
}

async function life(client, tag) {
  const key = `sess:${tag}:${Date.now()}`;
  const value = JSON.stringify({ user: 7, cart: ["ä", "b"] });
  expect(await client.get(key), null, "a session that does not exist");
  expect(await client.set(key, value, "EX", 60), "OK", "save");
  expect(await client.get(key), value, "load");
  expect(await client.expire(key, 120), 1, "touch");
  const ttl = await client.ttl(key);
  expect(ttl > 100 && ttl <= 120, true, "ttl");
  expect(await client.set(key, "x", "EX", 60, "NX"), null, "create twice");
  expect(await client.set(key, "x", "PX", 60000, "XX"), "OK", "update");
  expect(await client.del(key), 1, "logout");
  expect(await client.get(key), null, "gone");
}

async function flat(host, port) {
  const client = new Redis({ host, port, ...tls });
  await life(client, "flat");
  const keys = Array.from({ length: 200 }, (_, i) => `node:${i}`);
  const replies = await client.pipeline(keys.map((key, i) => ["set", key, `v${i}`, "ex", "600"])).exec();
  expect(replies.every(([error, reply]) => error === null && reply === "OK"), true, "pipeline");
  expect((await client.mget(keys))[199], "v199", "mget across slots");
  const found = new Set();
  for await (const page of client.scanStream({ match: "node:*", count: 20 })) page.forEach((key) => found.add(key));
  expect(found.size, 200, "scan finds every session");
  // What Laravel and others release their locks with.
  await client.set("lock:node", "me", "EX", 10, "NX");
  const script = "if redis.call('get',KEYS[1]) == ARGV[1] then\n  return redis.call('del',KEYS[1])\nelse\n  return 0\nend";
  expect(await client.eval(script, 1, "lock:node", "somebody"), 0, "not my lock");
  expect(await client.eval(script, 1, "lock:node", "me"), 1, "my lock");
  expect(await client.unlink(...keys), 200, "unlink across slots");
  await assert.rejects(client.call("nosuch"), /unknown command/);
  passed += 1;
  client.disconnect();
}

async function cluster(host, port) {
  const client = new Redis.Cluster([{ host, port }], { redisOptions: tls });
  for (let i = 0; i < 20; i += 1) await life(client, `cluster${i}`);
  client.disconnect();
}

const address = (text) => [text.slice(0, text.lastIndexOf(":")), Number(text.slice(text.lastIndexOf(":") + 1))];
await flat(...address(process.argv[2]));
await cluster(...address(process.argv[3]));
console.log(`${passed} passed, 0 failed`);
