// Light or dark, as the system has it until the reader chooses. Runs before the page is drawn, so that nothing flashes.
(() => {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "")) === "dark";
  try {
    const kept = localStorage.getItem("millrace.theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch {
    // nothing can be kept here, and nothing has to be
  }
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("millrace.theme", root.dataset.theme);
      } catch {
        // then it holds for this page only
      }
    });
  });
})();
