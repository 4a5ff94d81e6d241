// One CD drive: what is in it, what is under way, and what can be done about it.
import { h } from "./dom.js";
import { agentNow, drivePath, get, post } from "./api.js";
import { follow } from "./live.js";
import { outcome, refreshVM, state, whyNot } from "./store.js";
import { bar, button, dialog, facts, field, note, pill, say, trouble } from "./ui.js";
import { choose } from "./choose.js";
import { duration, size, time } from "./format.js";

export const driveKey = (d) => d.vm + "/" + d.name;
const elementID = (d) => "drive-" + driveKey(d);

const verbs = { insert: "Inserting", change: "Changing", eject: "Ejecting" };
const phases = {
  starting: "looking at the disc",
  "waiting-for-guest": "waiting for the guest",
  activating: "turning on the volume that holds the disc",
  changing: "the disc is moving",
  unsettled: "QEMU hasn't answered: the outcome isn't known yet, and trayd goes on asking",
};

export function driveState(d) {
  if (d.operation && d.operation.phase === "waiting-for-guest") return pill("busy", "waiting for the guest");
  switch (d.state) {
    case "empty": return pill("off", d.tray === "open" ? "empty, tray open" : "empty");
    case "loaded": return pill("good", d.tray === "open" ? "loaded, tray open" : "loaded");
    case "loading": return pill("busy", "loading");
    case "ejecting": return pill("busy", "ejecting");
    case "unsettled": return pill("warn", "unsettled");
    case "unknown": return pill("warn", "unknown");
    default: return pill("off", d.state);
  }
}

export const discName = (m) => m.volume_id || m.name || "a disc";

export function driveCard(d) {
  const o = d.operation && d.operation.phase !== "ended" ? d.operation : null;
  const busy = o ? "An operation is under way on this drive." : "";
  const fixed = d.changeable ? "" : "This drive's disc can't be changed while the machine runs.";
  const why = whyNot() || busy || fixed;
  const m = d.medium;
  const label = d.vm + " " + d.name;
  return h("section", { class: "card drive", key: d.name, id: elementID(d), tabindex: "-1", "aria-label": "Drive " + d.name },
    h("header", null,
      h("h3", null, d.name),
      driveState(d),
      d.locked ? pill("warn", "locked by the guest") : null,
      h("span", { class: "quiet" }, [d.bus, d.model].filter(Boolean).join(", "))),
    m ? h("div", { class: "disc" },
      h("p", { class: "what" }, discName(m)),
      facts(
        ["Medium", m.name], ["Size", m.size ? size(m.size) : ""], ["In since", m.since ? time(m.since) : ""],
        ["Put in by", m.ours ? "" : "someone else: trayd takes it out only when asked"]))
      : h("p", { class: "what quiet" }, d.state === "unknown" || d.state === "unsettled" ? "What is in it isn't known: QEMU doesn't answer." : "No disc"),
    d.changeable ? null : note("info", h("p", null, fixed + (d.reason ? " " + d.reason : ""))),
    d.changeable && d.reason ? note(d.state === "unsettled" || d.state === "unknown" ? "warn" : "info", h("p", null, d.reason)) : null,
    (d.releasing || []).map((r) => note("warn", h("p", null, "An earlier disc can't be released yet: " + r))),
    h("div", { class: "actions" },
      m ? [
        button("Eject", () => eject(d), { why, "aria-label": "Eject the disc of " + label }),
        button("Change…", () => choose(d, start, elementID(d)), { why, kind: "primary", "aria-label": "Change the disc of " + label }),
      ] : button("Insert…", () => choose(d, start, elementID(d)), { why, kind: "primary", "aria-label": "Insert a disc into " + label })),
    o ? underWay(d, o) : ended(d));
}

function underWay(d, o) {
  const waiting = o.phase === "waiting-for-guest";
  const why = whyNot();
  return h("div", { class: "note busy", "data-operation": o.id },
    h("p", null, h("strong", null, (verbs[o.verb] || o.verb) + (o.medium ? " " + o.medium : "") + ": "),
      phases[o.phase] || o.phase, o.by ? h("span", { class: "quiet" }, " (asked for by " + o.by + ")") : null),
    waiting ? [
      h("p", null, "The guest holds the drive's door. It was asked to let go; until then the old disc stays in."),
      countdown(o),
    ] : bar(phases[o.phase] || "under way"),
    waiting ? h("div", { class: "actions" },
      button("Cancel", () => act(d, "cancel"), { why, title: "Stop waiting: the old disc stays in" }),
      button("Force", () => act(d, "force"), { why, kind: "danger", title: "Take the disc now, though the guest uses it" })) : null,
    shown(d));
}

// countdown is a clock of its own, so that nothing else is drawn each second.
function countdown(o) {
  const total = Math.max(1, (Date.parse(o.deadline) - Date.parse(o.since)) / 1000);
  return h("p", { class: "countdown", key: "countdown-" + o.deadline, own: true, role: "timer", mount: (at) => {
    const meter = document.createElement("progress");
    const text = document.createElement("span");
    meter.max = total;
    meter.setAttribute("aria-label", "time until the wait ends");
    at.append(meter, text);
    const tick = () => {
      const left = Math.max(0, (Date.parse(o.deadline) - agentNow()) / 1000);
      meter.value = left;
      text.textContent = left > 0.5 ? "gives up in " + duration(left) : "the time is over";
    };
    tick();
    const timer = setInterval(tick, 500);
    return () => clearInterval(timer);
  } });
}

// shown is what a request from this page came to, until something else has come after it.
function shown(d) {
  const o = state.outcomes.get(driveKey(d));
  if (!o) return null;
  if (d.last && d.last.operation !== o.operation && Date.parse(d.last.at) > o.since) return null;
  if (o.problem) return trouble(o.problem, { onclose: () => outcome(driveKey(d), null) });
  return note("good", h("p", null, o.text));
}

function ended(d) {
  const here = shown(d);
  if (here) return here;
  const l = d.last;
  if (!l) return null;
  const words = { done: "done", failed: "failed", cancelled: "cancelled", overtaken: "overtaken by someone else", "machine-ended": "the machine ended" };
  return h("p", { class: "quiet last" }, "Last: " + [l.verb, l.medium, "–", words[l.result] || l.result, time(l.at), l.by ? "by " + l.by : "", l.recovered ? "(found out afterwards)" : ""].filter(Boolean).join(" ") + (l.reason ? ": " + l.reason : ""));
}

const told = { insert: "The disc is in.", change: "The disc was changed.", eject: "The disc is out." };

// start begins a change. It resolves when that has ended well or waits for the guest, and
// throws the problem if it can't be done. What came out after that is shown on the drive.
export async function start(d, verb, body) {
  outcome(driveKey(d), null);
  let o;
  try {
    o = await post(drivePath(d.vm, d.name) + "/" + verb + "?async=true", body);
  } finally {
    refreshVM(d.vm);
  }
  await new Promise((resolve, reject) => {
    let waits = false;
    followed(o, () => { waits = true; resolve(); }).then((end) => {
      const problem = end && problemOf(end);
      if (problem && !waits) reject(problem);
      else if (end) finished(d, end, problem);
      resolve();
    });
  });
}

function finished(d, o, problem) {
  const text = o.result === "cancelled" ? "Cancelled: the old disc is still in." : o.reason || told[o.verb] || "Done.";
  say(d.vm + " " + d.name + ": " + (problem ? problem.detail + " " + problem.next : text));
  refreshVM(d.vm);
  outcome(driveKey(d), { problem, text, operation: o.id, since: Date.parse(o.since) });
}

function refused(d, problem) {
  say(problem.detail + " " + problem.next);
  outcome(driveKey(d), { problem, since: agentNow() });
}

function problemOf(o) {
  if ((o.result === "done" && !o.error) || o.result === "cancelled") return null;
  return { detail: o.error || o.reason || "it ended: " + o.result, next: o.next || "" };
}

// followed resolves to the operation when it has ended, by its events, and by asking now and
// then. While the agent is away it goes on; one that was restarted doesn't know the operation
// any more (null), and says on the drive what came out.
function followed(o, onwait) {
  return new Promise((resolve) => {
    let asking = false;
    const stop = (end) => {
      unfollow();
      clearInterval(timer);
      resolve(end);
    };
    const ask = async () => {
      if (asking) return;
      asking = true;
      try {
        const now = await get("/v1/operations/" + encodeURIComponent(o.id));
        if (now.phase === "ended" || now.result) stop(now);
        else if (now.phase === "waiting-for-guest") onwait();
      } catch (problem) {
        if (problem.status === 404) stop(null);
      }
      asking = false;
    };
    const unfollow = follow((e) => { if (e.operation === o.id) ask(); });
    const timer = setInterval(ask, 1000);
    ask();
  });
}

async function act(d, verb) {
  try {
    await post(drivePath(d.vm, d.name) + "/" + verb);
  } catch (problem) {
    // The operation that was cancelled says so itself.
    if (problem.code !== "cancelled") refused(d, problem);
  }
  refreshVM(d.vm);
}

// eject asks how long to wait only when the guest holds the door.
function eject(d) {
  if (!d.locked) {
    start(d, "eject", {}).catch((problem) => refused(d, problem));
    return;
  }
  let options = {}, problem = null, busy = false;
  dialog("Eject " + (d.medium ? discName(d.medium) : "the disc") + " from " + d.vm, ({ close, draw }) => h("form", {
    class: "body", onsubmit: async (e) => {
      e.preventDefault();
      options = patience(new FormData(e.target));
      busy = true;
      draw();
      try {
        await start(d, "eject", options);
        close(true);
      } catch (p) {
        problem = p;
        busy = false;
        draw();
      }
    } },
    h("p", null, "The guest holds the drive's door: it has probably mounted the disc."),
    patienceFields(),
    trouble(problem),
    h("div", { class: "actions" }, button("Cancel", close),
      h("button", { class: "button primary", type: "submit", disabled: busy }, busy ? "Working…" : "Eject"))), { back: elementID(d) });
}

// patienceFields say what to do about a guest that holds the door.
export function patienceFields() {
  const option = (value, text, checked) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "patience", value, checked }), h("span", null, text));
  return h("fieldset", null,
    h("legend", { class: "unseen" }, "When the guest holds the door"),
    option("wait", "Wait for it; if it doesn't let go, leave the old disc in", true),
    option("then", "Wait for it, then take the disc"),
    option("force", "Take the disc at once"),
    field("Wait for", h("select", { name: "wait" },
      [["", "as configured"], ["10s", "10 seconds"], ["30s", "30 seconds"], ["1m", "1 minute"], ["5m", "5 minutes"]]
        .map(([value, text]) => h("option", { value }, text)))));
}

export function patience(form) {
  const body = {};
  if (form.get("wait") && form.get("patience") !== "force") body.wait = form.get("wait");
  if (form.get("patience") === "then") body.then_force = true;
  if (form.get("patience") === "force") body.force = true;
  return body;
}

