// A machine's screen and keyboard, by noVNC, which is loaded when a console is opened first.
import { h } from "./dom.js";
import { open, problemOf, vmPath } from "./api.js";
import { note } from "./ui.js";

export function consoleView(vm) {
  if (!vm.own) {
    return note("info", h("p", null, "trayd doesn't run " + vm.name + ", so it has no way to its screen's console."),
      h("p", null, "Use the viewer of whoever runs it. A picture of its screen is under About."));
  }
  return h("div", { class: "console", key: "console-" + vm.name, own: true, mount: (at) => mount(at, vm.name) });
}

function mount(at, name) {
  const make = (tag, props, text) => {
    const e = Object.assign(document.createElement(tag), props);
    if (text) e.textContent = text;
    return e;
  };
  const keys = make("button", { type: "button", className: "button", disabled: true }, "Ctrl-Alt-Del");
  const full = make("button", { type: "button", className: "button" }, "Full screen");
  const again = make("button", { type: "button", className: "button", hidden: true }, "Connect again");
  const status = make("span", { className: "quiet" }, "Connecting…");
  status.setAttribute("role", "status");
  const bar = make("div", { className: "actions" });
  bar.append(keys, full, again, status);
  const refused = make("div", { className: "note warn", hidden: true });
  refused.setAttribute("role", "alert");
  const frame = make("div", { className: "frame" });
  frame.setAttribute("aria-label", "Screen of " + name);
  frame.setAttribute("role", "group");
  const hint = make("p", { className: "quiet" }, "While the screen has the focus it takes every key. Ctrl+Shift+Escape gives the keyboard back to the page.");
  at.append(bar, refused, frame, hint);

  let rfb = null, gone = false, timer = 0, tries = 0;

  function refuse(problem) {
    status.textContent = "Not connected";
    again.hidden = false;
    keys.disabled = true;
    refused.hidden = false;
    refused.replaceChildren(make("p", {}, problem.detail));
    if (problem.next) refused.append(make("p", {}, "Next: " + problem.next));
  }

  async function connect() {
    clearTimeout(timer);
    if (gone || rfb) return;
    again.hidden = true;
    status.textContent = "Connecting…";
    const path = vmPath(name) + "/console";
    try {
      // A browser doesn't show why a WebSocket was refused: asked without Upgrade, the agent
      // says why not, or that it wants a WebSocket (426).
      const response = await open("GET", path, { raw: true, timeout: 10000 });
      if (response.status !== 426) throw await problemOf(response.status, response.headers.get("Content-Type"), () => response.text());
      const { default: RFB } = await import("./novnc/core/rfb.js");
      if (gone || rfb) return;
      const url = new URL(path, location.href);
      url.protocol = url.protocol.replace("http", "ws");
      rfb = new RFB(frame, url.href, { shared: true });
    } catch (problem) {
      if (gone) return;
      refuse(problem.detail ? problem : { detail: "the viewer can't be loaded: " + problem.message, next: "Reload the page." });
      if (problem.status !== 403) retry(); // a role doesn't change meanwhile, and each refusal is audited
      return;
    }
    refused.hidden = true;
    rfb.scaleViewport = true;
    rfb.background = "#000";
    rfb.addEventListener("connect", () => {
      tries = 0;
      status.textContent = "Connected";
      keys.disabled = false;
      rfb.focus();
    });
    rfb.addEventListener("disconnect", () => {
      rfb = null;
      keys.disabled = true;
      if (gone) return;
      status.textContent = "Disconnected";
      again.hidden = false;
      retry();
    });
  }

  // retry connects again by itself, ever more slowly: an agent that was restarted, a machine
  // that is started again.
  function retry() {
    tries++;
    timer = setTimeout(connect, Math.min(15000, 500 * 2 ** Math.min(tries, 6)));
  }

  const letGo = (e) => {
    if (e.key !== "Escape" || !e.shiftKey || !e.ctrlKey) return;
    e.preventDefault();
    e.stopPropagation();
    if (rfb) {
      for (const [key, code] of [[0xffe1, "ShiftLeft"], [0xffe2, "ShiftRight"], [0xffe3, "ControlLeft"], [0xffe4, "ControlRight"]]) rfb.sendKey(key, code, false);
      rfb.blur();
    }
    full.focus();
  };
  frame.addEventListener("keydown", letGo, true);
  keys.onclick = () => { if (rfb) { rfb.sendCtrlAltDel(); rfb.focus(); } };
  full.onclick = () => { if (document.fullscreenElement) document.exitFullscreen(); else frame.requestFullscreen().then(() => rfb && rfb.focus(), () => { status.textContent = "This browser has no full screen here"; }); };
  again.onclick = () => { tries = 0; connect(); };
  connect();
  return () => {
    gone = true;
    clearTimeout(timer);
    if (rfb) rfb.disconnect();
  };
}
