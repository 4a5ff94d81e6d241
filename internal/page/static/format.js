// Numbers and times as people read them.

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  if (!bytes) return bytes === 0 ? "0 B" : "";
  let n = bytes, unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return (unit && n < 100 ? n.toFixed(1).replace(/\.0$/, "") : Math.round(n)) + "\u00a0" + units[unit];
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return s + "\u00a0s";
  if (s < 3600) return Math.floor(s / 60) + "\u00a0min " + (s % 60 ? (s % 60) + "\u00a0s" : "");
  if (s < 48 * 3600) return Math.floor(s / 3600) + "\u00a0h " + Math.floor((s % 3600) / 60) + "\u00a0min";
  return Math.floor(s / 86400) + " days";
}

// time is the hour of today, else the day and the hour.
export function time(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime()) || at.getFullYear() < 1971) return "";
  const hour = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return at.toDateString() === new Date().toDateString() ? hour : at.toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" }) + ", " + hour;
}

export const count = (n, one, many) => n + "\u00a0" + (n === 1 ? one : many || one + "s");

// boots says what a machine can boot from an image; "" where that isn't known.
export function boots(image) {
  if (!image.boot) return "";
  const ways = [];
  if (image.boot.bios) ways.push("BIOS");
  if (image.boot.uefi_x64) ways.push("UEFI");
  if (image.boot.uefi_arm64) ways.push("UEFI (arm64)");
  return ways.length ? "boots: " + ways.join(", ") : "not bootable";
}

export function progressText(p) {
  if (!p) return "";
  const parts = [p.total ? size(p.bytes || 0) + " of " + size(p.total) : size(p.bytes || 0)];
  if (p.rate) parts.push(size(p.rate) + "/s");
  if (p.left_seconds) parts.push(duration(p.left_seconds) + " left");
  if (p.attempt > 1) parts.push("attempt " + p.attempt);
  if (p.waiting) parts.push("waits: " + p.waiting);
  return parts.join(", ");
}
