// What is known of the host. It is fetched anew when an event says that it has changed, and
// every few seconds in case one was missed. Answers may overtake each other: what was asked
// for earlier never replaces what was asked for later.
import { get, isAway, vmPath } from "./api.js";

export const state = {
  session: null, // null: not known yet; its role is view, change or admin
  signIn: null, // the problem when a token is wanted
  connection: "connecting", // live, lost
  lostAt: 0, // when it was lost
  asOf: null, // when the last answer came
  vms: null, // by name; null: not known yet
  details: new Map(), // by name: what GET /v1/vms/{vm} says besides
  viewing: "", // the machine whose page is open
  images: null,
  operations: null, // null: not known yet; false: this agent doesn't list them
  events: [], // newest first
  version: "", // of the agent that this page came from
  upgraded: false, // another one runs now
  trouble: null, // why the machines can't be listed though the agent answers
  outcomes: new Map(), // by "vm/drive" or "vm": what a request from this page came to
};

const listeners = new Set();
let told = false;

// changed has everything drawn again, once, soon.
export function changed() {
  if (told) return;
  told = true;
  queueMicrotask(() => {
    told = false;
    for (const f of listeners) f();
  });
}

export function whenChanged(f) {
  listeners.add(f);
  return () => listeners.delete(f);
}

let tickets = 0;
const asked = { vms: new Map(), all: 0, images: 0, operations: 0 };

// once makes a function that never runs twice at a time: what is asked for meanwhile is done
// once more afterwards.
function once(f) {
  let running = null, again = false;
  return function run() {
    if (running) {
      again = true;
      return running;
    }
    running = (async () => {
      do {
        again = false;
        await f();
      } while (again);
    })().finally(() => { running = null; });
    return running;
  };
}

let onAway = () => {};
export function whenAway(f) { onAway = f; }

async function fetched(path) {
  try {
    const answer = await get(path);
    state.asOf = Date.now();
    return answer;
  } catch (error) {
    if (isAway(error)) onAway();
    throw error;
  }
}

export const refreshVMs = once(async () => {
  const ticket = ++tickets;
  let list;
  try {
    list = await fetched("/v1/vms");
    state.trouble = null;
  } catch (error) {
    if (!isAway(error) && error.status !== 401) state.trouble = error;
    changed();
    return;
  }
  const before = state.vms || new Map();
  const now = new Map();
  for (const vm of list) {
    const newer = (asked.vms.get(vm.name) || 0) > ticket;
    if (!newer) asked.vms.set(vm.name, ticket);
    now.set(vm.name, newer && before.get(vm.name) || vm);
  }
  for (const [name, vm] of before) { // made since the list was asked for
    if (!now.has(name) && (asked.vms.get(name) || 0) > ticket) now.set(name, vm);
  }
  state.vms = new Map([...now].sort(([a], [b]) => (a < b ? -1 : 1)));
  changed();
});

const one = new Map();

// refreshVM asks for one machine, with all that is known of it.
export function refreshVM(name) {
  if (!one.has(name)) one.set(name, once(() => fetchVM(name)));
  return one.get(name)();
}

async function fetchVM(name) {
  const ticket = ++tickets;
  let vm;
  try {
    vm = await fetched(vmPath(name));
  } catch (error) {
    if (error.status !== 404 || (asked.vms.get(name) || 0) > ticket) return;
    asked.vms.set(name, ticket);
    state.details.delete(name);
    if (state.vms) state.vms.delete(name);
    changed();
    return;
  }
  if ((asked.vms.get(name) || 0) > ticket) return;
  asked.vms.set(name, ticket);
  state.details.set(name, vm.machine || null);
  if (state.vms) {
    const fresh = !state.vms.has(name);
    state.vms.set(name, vm);
    if (fresh) state.vms = new Map([...state.vms].sort(([a], [b]) => (a < b ? -1 : 1)));
  }
  changed();
}

export const refreshImages = once(async () => {
  try {
    state.images = await fetched("/v1/images");
  } catch (error) {
    if (state.images === null && !isAway(error)) state.images = []; // an agent without a library
  }
  changed();
});

export const refreshOperations = once(async () => {
  try {
    state.operations = await fetched("/v1/operations");
  } catch (error) {
    if (error.status === 404 || error.status === 405) state.operations = false;
  }
  changed();
});

export async function refreshSession() {
  try {
    state.session = await fetched("/v1/session");
    state.signIn = null;
  } catch (error) {
    // An agent without sessions lets in whoever may open its socket.
    if (error.status === 404) state.session = { name: "", role: "admin", host: "", version: "" };
    if (error.status === 404) state.signIn = null;
  }
  changed();
}

export const onTheirWay = () => (state.images || []).some((i) => ["allocated", "downloading", "verifying", "removing"].includes(i.state));

// whyNot is "" when this page may change things now, or why it may not.
export function whyNot(role = "change") {
  if (state.connection === "lost") return "The connection to the agent is lost.";
  const roles = ["view", "change", "admin"];
  const mine = state.session ? roles.indexOf(state.session.role) : roles.length;
  if (mine >= roles.indexOf(role)) return "";
  return "You may look, not change: your role is “" + state.session.role + "”. An administrator can give you a token with the role “" + role + "”.";
}

// roleNote is whyNot where only the role is to blame: the banner says the rest.
export const roleNote = () => (state.connection === "lost" ? "" : whyNot());

// outcome keeps what a request came to, for the place where the person looks.
export function outcome(where, o) {
  if (o) state.outcomes.set(where, o);
  else state.outcomes.delete(where);
  changed();
}
