// Requests to the API. An answer that isn't 2xx is thrown as a Problem, which always has a
// sentence on what stopped it and, mostly, one on what to do.

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || "the agent answered with status " + status);
    this.status = status;
    this.code = body.code || "";
    this.detail = this.message;
    this.next = body.next || "";
    this.operation = body.operation || "";
  }
}

// Away is the problem of an agent that can't be reached, or whose way here can't.
export function isAway(error) {
  return error instanceof Problem && error.code === "away";
}

const away = () => new Problem(0, {
  code: "away",
  detail: "the agent can't be reached",
  next: "the page goes on trying; is trayd running, and is the way to it open?",
});

// What a way in between says when there is no agent behind it. The agent itself says these
// as problem+json.
const noAgent = [502, 503, 504];

let onUnauthenticated = () => {};
export function whenUnauthenticated(f) { onUnauthenticated = f; }

// skew is how far this clock is behind the agent's, in ms: deadlines are times of its clock.
let skew = 0;
export const agentNow = () => Date.now() + skew;

function clock(response) {
  const date = Date.parse(response.headers.get("Date") || "");
  // The field has no fractions, and an answer takes time: 2 s are no difference.
  const apart = date + 500 - Date.now();
  if (!Number.isNaN(apart)) skew = Math.abs(apart) < 2000 ? 0 : apart;
}

// open is fetch; it throws problems.
export async function open(method, path, { body, signal, timeout, raw } = {}) {
  const init = { method, cache: "no-store", headers: {} };
  if (body !== undefined) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  if (timeout) init.signal = AbortSignal.timeout(timeout);
  if (signal) init.signal = signal;
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (signal && signal.aborted) throw error;
    throw away();
  }
  clock(response);
  if (response.ok || raw) return response;
  throw await problemOf(response.status, response.headers.get("Content-Type"), () => response.text());
}

export async function problemOf(status, type, read) {
  let problem;
  if ((type || "").startsWith("application/problem+json")) {
    try {
      problem = new Problem(status, JSON.parse(await read()));
    } catch {
      problem = away(); // it broke off
    }
  } else if (noAgent.includes(status)) {
    problem = away();
  } else {
    problem = new Problem(status, { detail: "the answer to this request was a status " + status + " that isn't trayd's", next: "is something else between this browser and trayd?" });
  }
  if (status === 401) onUnauthenticated(problem);
  return problem;
}

// ask is a request whose answer is JSON, or nothing.
export async function ask(method, path, options) {
  const response = await open(method, path, options);
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch {
    throw away();
  }
}

export const get = (path, options) => ask("GET", path, { timeout: 20000, ...options });
export const post = (path, body = {}, options) => ask("POST", path, { body, ...options });
export const del = (path) => ask("DELETE", path);

const part = encodeURIComponent;
export const vmPath = (vm) => "/v1/vms/" + part(vm);
export const drivePath = (vm, drive) => vmPath(vm) + "/drives/" + part(drive);
export const imagePath = (pool, name) => "/v1/pools/" + part(pool) + "/images/" + part(name);

// upload sends a file and tells progress(sent, total), which fetch can't. It resolves to the
// image; its `cancel` breaks it off.
export function upload(path, file, progress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open("PUT", path);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (e) => progress(e.loaded, e.total);
    request.onload = async () => {
      const type = request.getResponseHeader("Content-Type");
      if (request.status < 200 || request.status > 299) {
        reject(await problemOf(request.status, type, async () => request.responseText));
        return;
      }
      resolve(JSON.parse(request.responseText));
    };
    request.onerror = () => reject(new Problem(0, { code: "away", detail: "the upload broke off", next: "look at the images whether the agent kept anything, and upload it again" }));
    request.onabort = () => reject(new Problem(0, { code: "cancelled", detail: "the upload was cancelled", next: "nothing of it is kept" }));
    request.send(file);
  });
  done.cancel = () => request.abort();
  return done;
}
