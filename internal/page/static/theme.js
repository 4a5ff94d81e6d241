// Light, dark, or as the system has it; remembered in this browser.

const key = "trayd-theme";
const themes = ["system", "light", "dark"];

function stored() {
  try {
    const t = localStorage.getItem(key);
    return themes.includes(t) ? t : "system";
  } catch {
    return "system"; // storage may be forbidden
  }
}

export function theme() { return stored(); }

export function setTheme(t) {
  try {
    localStorage.setItem(key, t);
  } catch { /* it holds until the page is left */ }
  apply(t);
}

function apply(t) {
  if (t === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = t;
}

apply(stored());
