/* The remembered theme, set before anything is painted: so a classic script, in the head. */
"use strict";

(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("sublens-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
