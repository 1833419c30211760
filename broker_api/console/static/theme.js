// Before the page is drawn: dark if the reader chose so, or the system says so.
(() => {
  const chosen = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // The browser keeps nothing for pages.
    }
  };
  const wanted = () => chosen() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const set = () => document.documentElement.setAttribute("data-bs-theme", wanted());
  set();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", set);
})();
