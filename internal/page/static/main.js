// The page: which view the address names, what stands around it, and who is signed in.
import { h, patch } from "./dom.js";
import { del, post, whenUnauthenticated } from "./api.js";
import { changed, refreshVM, state, whenChanged } from "./store.js";
import * as live from "./live.js";
import { button, field, trouble } from "./ui.js";
import { setTheme, theme } from "./theme.js";
import { machinesView } from "./machines.js";
import { machineView } from "./machine.js";
import { imagesView } from "./images.js";
import { eventsView, operationsView } from "./lists.js";
import { time } from "./format.js";

const views = [["", "Machines"], ["images", "Images"], ["operations", "Operations"], ["events", "Events"]];

// route is the view that the address names: #/, #/images, #/vm/NAME/SECTION.
function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map((p) => {
    try {
      return decodeURIComponent(p);
    } catch {
      return p;
    }
  });
  if (parts[0] === "vm" && parts[1]) {
    const section = ["console", "about"].includes(parts[2]) ? parts[2] : "volumes";
    return { id: "vm", vm: parts[1], section, title: parts[1] + " – " + { volumes: "Volumes", console: "Console", about: "About" }[section] };
  }
  const view = views.find(([id]) => id === parts[0]) || views[0];
  return { id: view[0], title: view[1] };
}

function view(at) {
  switch (at.id) {
    case "vm": return machineView(at.vm, at.section);
    case "images": return imagesView();
    case "operations": return operationsView();
    case "events": return eventsView();
    default: return machinesView();
  }
}

function header(at) {
  const s = state.session;
  return [
    h("a", { class: "brand", href: "#/" }, "trayd", s && s.host ? h("span", null, s.host) : null),
    state.signIn ? null : h("nav", { "aria-label": "Views" }, views.map(([id, text]) => h("a", { href: "#/" + id, "aria-current": at.id === id || (id === "" && at.id === "vm") ? "page" : null }, text))),
    h("div", { class: "who" },
      h("label", null, h("span", { class: "unseen" }, "Colours"),
        h("select", { onchange: (e) => { setTheme(e.target.value); changed(); } }, ["system", "light", "dark"].map((t) => h("option", { value: t, selected: t === theme() }, t)))),
      s && s.name ? h("span", { class: "name", title: "role: " + s.role }, s.name, " (" + s.role + ")") : null,
      s && s.name && !state.signIn ? button("Sign out", signOut, { kind: "small" }) : null),
  ];
}

function banner() {
  if (state.signIn) return null;
  if (state.connection !== "lost") return state.upgraded ? h("p", { class: "upgraded" }, "The agent was upgraded; this page is the old one's. ", button("Reload the page", () => location.reload(), { kind: "small" })) : null;
  return h("p", null, h("strong", null, "Connection lost, trying again."), state.asOf ? " What is shown is as of " + time(state.asOf) + "." : "",
    Date.now() - state.lostAt >= live.longAway ? [" Is trayd running? If you came here by ", h("code", null, "trayctl ui"), ", that may have to be run again."] : null);
}

// over reports whether this is a page of `trayctl ui` whose session has ended: nobody can sign in here.
const over = () => Boolean(state.signIn && state.signIn.problem && state.signIn.problem.code === "session-over");

function signInView() {
  if (over()) return h("div", { class: "card signin" }, h("h1", null, "Signed out"), h("p", { role: "status" }, "This page has no session any more. Run ", h("code", null, "trayctl ui"), " again: it opens a new one."));
  return h("form", { class: "card signin", onsubmit: signIn },
    h("h1", null, "Sign in"),
    h("p", null, "The agent wants a token. ", h("code", null, "trayctl ui"), " on its host opens this page without one, and ", h("code", null, "trayctl token create"), " makes one."),
    field("Token", h("input", { type: "password", name: "token", required: true, autocomplete: "current-password", mount: (e) => { e.focus(); } })),
    state.signIn.tried ? trouble(state.signIn.problem) : null,
    h("div", { class: "actions" }, h("button", { class: "button primary", type: "submit" }, "Sign in")));
}

async function signIn(e) {
  e.preventDefault();
  try {
    await post("/v1/session", { token: new FormData(e.target).get("token") });
    state.signIn = null;
    live.again();
  } catch (problem) {
    state.signIn = { problem, tried: true };
    e.target.reset();
  }
  changed();
}

async function signOut() {
  try {
    await del("/v1/session");
  } catch { /* it has ended already */ }
  state.session = null;
  state.signIn = { problem: null };
  live.again();
  changed();
}

function draw() {
  const at = route();
  const lost = state.connection === "lost";
  const title = over() ? "Signed out" : state.signIn ? "Sign in" : at.title;
  const host = state.session && state.session.host;
  document.title = (lost ? "(lost) " : "") + title + " – trayd" + (host ? " on " + host : "");
  document.documentElement.classList.toggle("stale", lost);
  patch(document.getElementById("top"), header(at));
  patch(document.getElementById("banner"), banner());
  const main = document.getElementById("main");
  main.setAttribute("aria-busy", String(state.connection === "connecting"));
  patch(main, h("div", { key: state.signIn ? "sign-in" : at.id + (at.vm || ""), class: "view" }, state.signIn ? signInView() : view(at)));
}

function arrive() {
  const at = route();
  state.viewing = at.id === "vm" ? at.vm : "";
  if (state.viewing) refreshVM(state.viewing);
  draw();
}

whenUnauthenticated((problem) => {
  state.signIn ||= {};
  state.signIn.problem ||= problem;
  changed();
});
whenChanged(draw);
window.addEventListener("hashchange", () => {
  arrive();
  window.scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (e) => {
  e.preventDefault();
  document.getElementById("main").focus();
});
arrive();
live.run();
