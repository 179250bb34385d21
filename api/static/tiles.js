// The service as it is: what it says of itself, and what its metrics said since the last look.

import { shortly } from "./words.js";

const EVERY_MS = 1000, SERVICE_EVERY = 3;

export async function watch(onService) {
  let before = {}, service = null;
  for (let ticks = 0; ; ticks += 1) {
    if (!document.hidden) {
      const due = ticks % SERVICE_EVERY === 0 || !service?.ready;
      if (due) onService((service = await get("./", (response) => response.json())));
      const now = await get("metrics", numbers);
      now ? show(now, before, service?.slots) : put("tile-rate", "–");
      before = now ?? before;
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

// Null when the gateway cannot be reached.
const get = (path, read) =>
  fetch(path, { headers: { accept: "application/json" } }).then(read).catch(() => null);

async function numbers(response) {
  const lines = (await response.text()).matchAll(/^medusa_gateway_(\w+) (\S+)$/gm);
  const values = [...lines].map(([, name, value]) => [name, Number(value)]);
  return { at: performance.now(), ...Object.fromEntries(values) };
}

function show(now, before, slots) {
  const since = (name) => now[name] - (before[name] ?? 0);
  const tokens = since("generation_tokens_total");
  // Every delivery of tokens is a step of one request: its first one, and those timed against it.
  const steps = since("time_to_first_token_seconds_count") + since("inter_token_latency_seconds_count");
  const batches = since("batch_size_count");
  const rate = before.at ? (1000 * tokens) / since("at") : 0;
  put("tile-rate", shortly(rate));
  if (steps > 0) put("tile-step", (tokens / steps).toFixed(2));
  if (batches > 0) put("tile-batch", (since("batch_size_sum") / batches).toFixed(1));
  const { num_requests_running: running, num_requests_waiting: gathering } = now;
  put("tile-queue", Math.max(gathering, running - (slots ?? Infinity), 0));
  put("note-queue", `${running} running${slots ? `, ${slots} at once` : ""}`);
}

const put = (id, value) => (document.getElementById(id).textContent = value);
