// The agent's events, and what follows from them. The stream is read by fetch and not by
// EventSource: that one says neither why it was refused nor hears types it doesn't know.
import { get, open } from "./api.js";
import * as store from "./store.js";
import { state } from "./store.js";

const silence = 45000; // the agent says something every 20 s
const poll = 5000;
export const longAway = 5000; // ms, after which more than a restart is wrong
const kept = 200;

// The id of the last event. Ids go on over restarts of the agent; 1 asks for all that it
// still has, 0 would be what comes next only.
let last = 1;
let reader = null; // ends the stream
let wake = () => {}; // ends a pause
const followers = new Set(); // of events

export function follow(f) {
  followers.add(f);
  return () => followers.delete(f);
}

// run keeps the page up to date, for ever.
export async function run() {
  store.whenAway(suspect);
  setInterval(tick, 1000);
  document.addEventListener("visibilitychange", () => wake());
  window.addEventListener("online", () => wake());
  for (let failures = 0; ;) {
    const came = await stream();
    if (came) failures = 0;
    if (state.signIn) {
      await pause(3600000);
      continue;
    }
    failures++;
    if (failures > 1 || !came) lost();
    await pause(Math.min(5000, 50 * 2 ** failures));
  }
}

// again reconnects at once: somebody has signed in, or out.
export function again() {
  if (reader) reader.abort();
  wake();
}

function pause(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => { clearTimeout(timer); resolve(); };
  });
}

function lost() {
  if (state.connection === "lost") return;
  state.connection = "lost";
  state.lostAt = Date.now();
  store.changed();
  setTimeout(store.changed, longAway);
}

// suspect has the stream tried again: another request didn't get through.
let checking = false;
async function suspect() {
  if (checking || state.connection === "lost") return;
  checking = true;
  try {
    await get("/v1/version", { timeout: 5000 });
  } catch (error) {
    if (error.code === "away") {
      lost();
      if (reader) reader.abort();
    }
  } finally {
    checking = false;
  }
}

// stream reads events until the stream ends, and tells whether there was one.
async function stream() {
  reader = new AbortController();
  const { signal } = reader;
  let watch, came = false;
  const heard = () => {
    clearTimeout(watch);
    watch = setTimeout(() => reader.abort(), silence);
  };
  try {
    heard();
    const version = await get("/v1/version", { signal });
    state.version ||= version.version;
    state.upgraded = version.version !== state.version;
    const response = await open("GET", "/v1/events?after=" + last, { signal });
    came = true;
    state.connection = "live";
    store.changed();
    everything();
    const text = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { done, value } = await text.read();
      if (done) return came;
      heard();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      parts.forEach(message);
    }
  } catch {
    return came;
  } finally {
    clearTimeout(watch);
  }
}

function message(text) {
  const data = text.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5)).join("\n");
  if (!data) return; // a comment that keeps the stream alive
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    return;
  }
  const first = last === 1;
  last = event.id; // which a clock that was set back makes a lower one
  if (event.type === "missed") {
    everything();
    if (first) return; // what was before this page isn't missed
  }
  if (!state.events.some((e) => e.id === event.id)) {
    state.events.unshift(event);
    state.events.length = Math.min(state.events.length, kept);
  }
  about(event);
  followers.forEach((f) => f(event));
  store.changed();
}

// about fetches what an event is about. A disc that moves changes who uses an image.
function about(event) {
  if (event.vm) store.refreshVM(event.vm);
  if (!event.vm || ["loaded", "ejected", "released", "guest-ejected", "settled"].includes(event.type)) soonImages();
  if (state.operations !== null && state.operations !== false) soonOperations();
}

const soon = (f, ms) => {
  let timer = 0;
  return () => {
    timer ||= setTimeout(() => { timer = 0; f(); }, ms);
  };
};
const soonImages = soon(() => store.refreshImages(), 100);
const soonOperations = soon(() => store.refreshOperations(), 100);

// everything is fetched after each reconnect: what was missed doesn't matter then.
export function everything() {
  store.refreshSession();
  store.refreshVMs();
  store.refreshImages();
  if (state.viewing) store.refreshVM(state.viewing);
  if (state.operations) store.refreshOperations();
}

let ticks = 0;
function tick() {
  if (state.connection !== "live" || document.hidden) return;
  ticks++;
  if (ticks % (poll / 1000) === 0) {
    store.refreshVMs();
    store.refreshImages(); // a download that begins is no event
    if (state.operations) store.refreshOperations();
    if (state.viewing) store.refreshVM(state.viewing);
  }
  if (store.onTheirWay()) store.refreshImages();
  if ((state.operations || []).some((o) => o.phase !== "ended")) store.refreshOperations();
}
