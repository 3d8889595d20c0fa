// Sends events with the client of docs/clients: reads {url, key, retries, timeout, real, events} on standard input,
// prints {pauses, verdicts}. Pauses, in seconds, only take their time where `real` says so.
import { readFileSync } from "node:fs";

import { Tidemill } from "../../../docs/clients/tidemill.mjs";

const { url, key, retries, timeout, real, events } = JSON.parse(readFileSync(0, "utf8"));
const pauses = [];
const client = new Tidemill({ url, key, retries, timeout: timeout * 1_000 });
const sleep = client.sleep;
client.sleep = async (ms) => {
  pauses.push(ms / 1_000);
  if (real) await sleep(ms);
};
const before = JSON.stringify(events);
const verdicts = await client.send(events);
if (JSON.stringify(events) !== before) throw new Error("the caller's events were changed");
console.log(JSON.stringify({ pauses, verdicts }));
