// The list of machines, and the pictures of their screens.
import { h } from "./dom.js";
import { open, vmPath } from "./api.js";
import { state } from "./store.js";
import { note, pill, trouble } from "./ui.js";
import { discName, driveState } from "./drive.js";
import { count } from "./format.js";

export function vmState(vm) {
  switch (vm.state) {
    case "running": return pill("good", "running");
    case "stopped": return pill("off", "stopped");
    case "failed": return pill("bad", "failed");
    case "unreachable": return pill("warn", "unreachable");
    case "starting": return pill("busy", "starting");
    default: return pill("warn", vm.state);
  }
}

export const link = (vm, section) => "#/vm/" + encodeURIComponent(vm) + (section ? "/" + section : "");

export function machinesView() {
  const all = state.vms ? [...state.vms.values()] : [];
  return [
    h("div", { class: "heading" }, h("h1", null, "Machines"), state.vms ? h("span", { class: "quiet" }, count(all.length, "machine")) : null),
    trouble(state.trouble, { title: "The machines can't be listed: " }),
    state.vms === null && !state.trouble ? h("p", { class: "quiet" }, "Loading…") : null,
    state.vms && !all.length ? note("info",
      h("p", null, "No machine yet. A QEMU appears here by itself when it has a monitor socket where trayd looks for them."),
      h("p", null, "trayd can also run machines itself: ", h("code", null, "trayctl vm create"), ".")) : null,
    h("ul", { class: "machines" }, all.map(card)),
  ];
}

function card(vm) {
  return h("li", { class: "card machine", key: vm.name },
    thumbnail(vm),
    h("div", { class: "text" },
      h("h2", null, h("a", { href: link(vm.name) }, vm.name)),
      h("p", null, vmState(vm), h("span", { class: "quiet" }, " " + count((vm.drives || []).length, "CD drive"))),
      vm.reason ? h("p", { class: "reason" }, vm.reason, vm.next ? h("span", null, " ", h("strong", null, "Next: "), vm.next) : null) : null,
      h("ul", { class: "plain drives" }, (vm.drives || []).map((d) => h("li", { key: d.name },
        h("span", { class: "name" }, d.name), driveState(d), d.medium ? h("span", null, " " + discName(d.medium)) : null)))));
}

const live = (vm) => vm.answered && vm.state !== "stopped" && vm.state !== "failed";

// thumbnail is a picture of a machine's screen, for as long as somebody can see it.
export function thumbnail(vm) {
  if (!live(vm)) return h("div", { class: "screen none", key: "none", "aria-hidden": "true" }, "no picture");
  return h("div", { class: "screen", key: "live", own: true, mount: (at) => watch(at, vm.name) });
}

const between = 5000; // ms from one picture to the next
let queue = Promise.resolve(); // one picture at a time: QEMU draws each anew

function watch(at, name) {
  const img = document.createElement("img");
  img.alt = "Screen of " + name;
  img.hidden = true;
  const none = document.createElement("span");
  none.textContent = "no picture yet";
  at.append(img, none);
  let url = "", visible = false, timer = 0, gone = false;
  const show = (blob) => {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(blob);
    img.src = url;
    img.hidden = false;
    none.hidden = true;
  };
  const refuse = (text) => {
    img.hidden = true;
    none.hidden = false;
    none.textContent = text;
  };
  const take = async () => {
    if (gone || !visible || document.hidden || state.connection !== "live") return;
    // Refusals are no news here: a machine may have no screen.
    const response = await open("GET", vmPath(name) + "/screenshot", { timeout: 10000 });
    const blob = await response.blob();
    if (!gone) show(blob);
  };
  const next = () => {
    clearTimeout(timer);
    queue = queue.then(take).catch((problem) => { if (!gone) refuse(problem.code === "no-screen" ? "no screen" : "no picture"); }).then(() => {
      if (!gone && visible) timer = setTimeout(next, between);
    });
  };
  const observer = new IntersectionObserver((entries) => {
    const now = entries.some((e) => e.isIntersecting);
    if (now === visible) return;
    visible = now;
    if (visible) next();
    else clearTimeout(timer);
  });
  observer.observe(at);
  return () => {
    gone = true;
    observer.disconnect();
    clearTimeout(timer);
    if (url) URL.revokeObjectURL(url);
  };
}
