/** The page: its tabs, theme and key, and the start of each view. */

import { json, keepKey, whenKeyIsNeeded } from "./api.js";
import { complain, find, make } from "./dom.js";
import { startExplore } from "./explore.js";
import { startPredict } from "./predict.js";
import { startResults } from "./results.js";

const VIEWS = ["predict", "explore", "results"];

/** What follows #NAME in the address bar, by view. @type {Record<string, string>} */
const memory = Object.fromEntries(VIEWS.map((view) => [view, ""]));

/** What to do when a view is opened, with what follows its name in the address. @type {Record<string, (words: string) => void>} */
const whenOpened = {};

/** The view of an address; the first one where it names none, as addresses of the page before (#judge). @param {string} hash */
const viewOf = (hash) => VIEWS.find((view) => hash.slice(1).split("?")[0] === view) ?? VIEWS[0];

/** Opens the view of an address. @param {string} hash */
function open(hash) {
  const view = viewOf(hash);
  if (view !== current()) scrollTo(0, 0);
  for (const name of VIEWS) {
    const tab = find(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === view));
    tab.tabIndex = name === view ? 0 : -1;
    find(`view-${name}`).hidden = name !== view;
  }
  document.title = `${find(`tab-${view}`).textContent} · sublens`;
  whenOpened[view]?.(hash.split("?")[1] ?? "");
}

const current = () => VIEWS.find((view) => find(`tab-${view}`).getAttribute("aria-selected") === "true") ?? VIEWS[0];

/** Keeps what a view wants to find in the address when it is opened again. @param {string} view @param {string} words */
function remember(view, words) {
  memory[view] = words;
  if (current() === view) history.replaceState(null, "", `#${view}${words && `?${words}`}`);
}

function startTabs() {
  for (const view of VIEWS) {
    find(`tab-${view}`).addEventListener("click", () => (location.hash = view + (memory[view] && `?${memory[view]}`)));
  }
  find("tabs").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const at = VIEWS.indexOf(current());
    const places = /** @type {Record<string, number>} */ ({
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: VIEWS.length - 1,
    });
    const to = places[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = find(`tab-${VIEWS[(to + VIEWS.length) % VIEWS.length]}`);
    tab.click();
    tab.focus();
  });
  addEventListener("hashchange", () => open(location.hash));
}

function startTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () =>
    find("theme").replaceChildren(isDark() ? "Light" : "Dark", make("span", { class: "roomy", text: "\u00a0theme" }));
  find("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("sublens-theme", root.dataset.theme);
    } catch {
      // Then it is forgotten with the page.
    }
    name();
  });
  system.addEventListener("change", name);
  name();
}

/** Several requests may need the key at once: all wait for the one form. */
function startKeyForm() {
  const form = find("key-form");
  /** @type {(() => void)[]} */
  let waiting = [];
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    keepKey(find("key").value.trim());
    form.hidden = true;
    waiting.forEach((go) => go());
    waiting = [];
    find("key-words").textContent = "That key was not accepted; please check it."; // what is read if it is asked for again
  });
  whenKeyIsNeeded(() => {
    if (form.hidden) {
      form.hidden = false;
      find("key").value = "";
      find("key").focus();
    }
    return new Promise((go) => waiting.push(go));
  });
}

async function start() {
  startTheme();
  startTabs();
  startKeyForm();
  open(location.hash);
  try {
    const service = await json("/v1/networks");
    find("version").textContent = `sublens ${service.version}`;
    startPredict(service);
    whenOpened.explore = startExplore(service, (words) => remember("explore", words));
    startResults(service);
    open(location.hash);
    document.documentElement.dataset.ready = "";
  } catch (error) {
    complain(find("page-problem"), error);
  }
}

start();
