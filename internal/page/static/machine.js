// One machine: its CD drives, its screen, what can be done to it and what is known of it.
import { h } from "./dom.js";
import { post, vmPath } from "./api.js";
import { outcome, refreshVM, roleNote, state, whyNot } from "./store.js";
import { button, confirm, facts, note, say, trouble } from "./ui.js";
import { driveCard } from "./drive.js";
import { consoleView } from "./console.js";
import { link, thumbnail, vmState } from "./machines.js";
import { count, size } from "./format.js";

const sections = [["volumes", "Volumes"], ["console", "Console"], ["about", "About"]];

export function machineView(name, section) {
  const vm = state.vms && state.vms.get(name);
  if (!vm) {
    return [crumbs(name), h("h1", null, name),
      state.vms === null ? h("p", { class: "quiet" }, "Loading…") : note("warn", h("p", null, "There is no machine " + name + " now."), h("p", null, h("a", { href: "#/" }, "All machines")))];
  }
  return [
    crumbs(name),
    h("div", { class: "heading" }, h("h1", null, name), vmState(vm), vm.own ? actions(vm) : null),
    vm.reason ? note("warn", h("p", null, vm.reason), vm.next ? h("p", null, h("strong", null, "Next: "), vm.next) : null) : null,
    result(vm),
    notes(state.details.get(name)),
    h("nav", { class: "tabs", "aria-label": "Sections of " + name }, sections.map(([id, text]) => h("a", { href: link(name, id), "aria-current": section === id ? "page" : null }, text))),
    h("div", { class: "section", key: section }, section === "console" ? consoleView(vm) : section === "about" ? about(vm) : volumes(vm)),
  ];
}

const crumbs = (name) => h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Machines"), " / " + name);

function volumes(vm) {
  const drives = vm.drives || [];
  return [
    h("h2", { class: "unseen" }, "Volumes"),
    roleNote() ? note("info", h("p", null, roleNote())) : null,
    drives.length ? h("div", { class: "grid" }, drives.map(driveCard)) : h("p", { class: "quiet" }, vm.answered || vm.own ? "This machine has no CD drive." : "Its drives aren't known: QEMU doesn't answer."),
  ];
}

function notes(details) {
  const all = details && details.notes || [];
  return all.length ? note("info", all.map((n) => h("p", null, n))) : null;
}

function actions(vm) {
  const o = state.outcomes.get(vm.name);
  const why = whyNot() || (o && o.busy ? "Something is being done to the machine." : "");
  const off = vm.state === "stopped" || vm.state === "failed";
  const held = vm.state === "paused" || vm.state === "io-error";
  return h("div", { class: "actions", role: "group", "aria-label": "Actions of " + vm.name },
    off || held ? button(held ? "Let it run" : "Start", () => act(vm, "start", "Starting…", vm.name + " runs."), { why, kind: "primary" }) : null,
    off ? null : [
      button("Stop", () => act(vm, "stop", "The guest was asked to power off…", vm.name + " has ended."), { why, title: "Asks the guest to power off" }),
      button("Reset…", () => ask(vm, "reset", "Reset " + vm.name + "?", "The machine begins anew, as by its reset button. The guest loses what it hasn't written."), { why, kind: "danger" }),
      button("Kill…", () => ask(vm, "kill", "Kill " + vm.name + "?", "The machine ends at once, as by pulling its plug. The guest loses what it hasn't written."), { why, kind: "danger" }),
    ]);
}

function ask(vm, verb, title, text) {
  confirm({ title, text, label: verb === "kill" ? "Kill" : "Reset", back: "main", act: async () => {
    await post(vmPath(vm.name) + "/" + verb);
    say(vm.name + ": done.");
    refreshVM(vm.name);
  } });
}

async function act(vm, verb, busy, done) {
  outcome(vm.name, { busy });
  try {
    const answer = await post(vmPath(vm.name) + "/" + verb);
    outcome(vm.name, { text: done, warnings: answer && answer.warnings });
    say(done);
  } catch (problem) {
    outcome(vm.name, { problem });
  }
  refreshVM(vm.name);
}

function result(vm) {
  const o = state.outcomes.get(vm.name);
  if (!o) return null;
  const dismiss = () => outcome(vm.name, null);
  if (o.problem) return trouble(o.problem, { onclose: dismiss });
  if (o.busy) return note("busy", h("p", null, o.busy));
  return note("good", h("p", null, o.text), (o.warnings || []).map((w) => h("p", null, w)), button("Dismiss", dismiss, { kind: "small" }));
}

function about(vm) {
  const details = state.details.get(vm.name);
  const d = details && details.definition;
  return [
    h("h2", { class: "unseen" }, "About"),
    h("div", { class: "about" },
      h("div", { class: "card" },
        facts(
          ["State", vm.state], ["Run by", vm.own ? "trayd" : "someone else; trayd changes its discs"], ["QEMU", vm.qemu], ["Process", vm.pid || ""],
          ["Monitor", vm.socket], ["Unit", details && details.unit], ["Files", details && details.dir],
          d && ["Processors", d.cpus], d && ["Memory", size(d.memory)], d && ["Machine", [d.machine, d.firmware].filter(Boolean).join(", ")],
          d && ["Boots", d.boot], d && ["Starts with the host", d.autostart ? "yes" : "no"], d && ["UUID", d.uuid],
          d && ["Networks", (d.networks || []).map((n) => [n.type, n.bridge || n.tap, n.mac].filter(Boolean).join(" ")).join("; ")],
          details && ["Failure", details.failure]),
        d && d.disks && d.disks.length ? [h("h3", null, count(d.disks.length, "disk")), facts(...d.disks.map((k) => {
          const now = (details.disks || []).find((s) => s.name === k.name) || {};
          return [k.name, [size(k.size), k.bus, now.allocated ? size(now.allocated) + " on the host" : "", k.image ? "from " + k.image : "", now.file].filter(Boolean).join(", ")];
        }))] : null),
      thumbnail(vm)),
  ];
}
