/**
 * A small Tidemill client for browsers and Node.js 18+, without dependencies: it sends events until each has its
 * verdict or the tries are used up. README.md beside it says what it promises.
 *
 *   const client = new Tidemill({ url: "https://events.example", key });
 *   const [verdict] = await client.send([{ eventType: "purchase", properties: { price: 12.3 } }]);
 */

const FINAL = new Set(["accepted", "duplicate", "invalid"]);
const BATCH_EVENTS = 500;
const BATCH_CHARACTERS = 1_000_000;
const LONGEST_PAUSE_MS = 60_000;

// Node.js 18 has it in a module only.
const crypto = globalThis.crypto ?? (await import("node:crypto")).webcrypto;

export class Tidemill {
  /** `retries` come after the first try; `timeout` is in ms, of one try. `sleep` and `now` are for tests. */
  constructor({ url, key, retries = 3, timeout = 15_000, sleep = wait, now = Date.now }) {
    this.url = `${url.replace(/\/+$/, "")}/v1/events`;
    Object.assign(this, { key, retries, timeout, sleep, now });
  }

  /** Gives a verdict for each event, in order: `{ event, eventId, status, position, error }`. */
  async send(events) {
    const parcels = Array.from(events, (event) => {
      const named = { ...event, eventId: event.eventId ?? newId() };
      // Made once: what is sent again is the same to the byte.
      return { text: JSON.stringify(named), verdict: unknown(named) };
    });
    for (const batch of batches(parcels)) await this.#deliver(batch);
    return parcels.map((parcel) => parcel.verdict);
  }

  async #deliver(batch) {
    let open = batch;
    for (let attempt = 0; ; attempt++) {
      const answer = await this.#post(open);
      open = settle(open, answer);
      const pause = Math.max(1_000 * 2 ** Math.min(attempt, 3), pauseAskedFor(answer.retryAfter, this.now()));
      if (open.length === 0 || attempt >= this.retries || pause > LONGEST_PAUSE_MS) return;
      await this.sleep(pause);
    }
  }

  async #post(batch) {
    const answer = { status: 0, retryAfter: null, body: null };
    try {
      const response = await fetch(this.url, {
        method: "POST",
        headers: { Authorization: `Bearer ${this.key}`, "Content-Type": "application/json" },
        body: `[${batch.map((parcel) => parcel.text).join(",")}]`,
        redirect: "manual",
        signal: AbortSignal.timeout(this.timeout),
      });
      const text = await response.text();
      // A redirection, which is not followed, has status 0 in browsers.
      answer.status = response.status || 302;
      answer.retryAfter = response.headers.get("Retry-After");
      answer.body = JSON.parse(text);
    } catch (error) {
      answer.body = { detail: `no usable answer (status ${answer.status}): ${error.message}` };
    }
    return answer;
  }
}

/** Writes down the verdicts that there are; gives what is to be sent again. */
function settle(batch, { status, body }) {
  const again = status === 0 || status === 408 || status === 429 || status >= 500;
  if (again || status < 200 || status > 299) {
    for (const { verdict } of batch) Object.assign(verdict, { status: again ? "failed" : "refused", error: body });
    return again ? batch : [];
  }
  for (const { verdict } of batch) verdict.error = { detail: "the answer has no verdict on it" };
  for (const result of Array.isArray(body?.results) ? body.results : []) {
    const verdict = batch[result?.index]?.verdict;
    const status = FINAL.has(result?.status) ? result.status : "failed";
    if (verdict) Object.assign(verdict, { status, position: result.position ?? null, error: result.error ?? null });
  }
  return batch.filter(({ verdict }) => verdict.status === "failed");
}

/** What is known of an event before there is an answer. */
function unknown(event) {
  return { event, eventId: event.eventId, status: "failed", position: null, error: null };
}

/** In ms; the header has seconds or a date. */
function pauseAskedFor(retryAfter, now) {
  if (/^\d+$/.test(retryAfter)) return Number(retryAfter) * 1_000;
  return Math.max(0, Date.parse(retryAfter) - now) || 0;
}

function* batches(parcels) {
  let [batch, characters] = [[], 0];
  for (const parcel of parcels) {
    if (batch.length === BATCH_EVENTS || (batch.length > 0 && characters + parcel.text.length > BATCH_CHARACTERS)) {
      yield batch;
      [batch, characters] = [[], 0];
    }
    batch.push(parcel);
    characters += parcel.text.length;
  }
  if (batch.length > 0) yield batch;
}

/** 128 random bits. `randomUUID` is only there on secure pages. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function wait(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
