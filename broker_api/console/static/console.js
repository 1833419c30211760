// What every page does in a browser: times in the reader's zone, the theme's switch, and renewing.
import { showTimes } from "./times.js";
import { renewPage } from "./renew.js";

const root = document.documentElement;
const themeSwitch = document.querySelector("[data-theme-switch]");
const nameTheme = () => {
  themeSwitch.textContent = root.getAttribute("data-bs-theme") === "dark" ? "Light" : "Dark";
};
themeSwitch.hidden = false;
themeSwitch.addEventListener("click", () => {
  const other = root.getAttribute("data-bs-theme") === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("theme", other);
  } catch {
    // The browser keeps nothing for pages. The choice holds for this one.
  }
  root.setAttribute("data-bs-theme", other);
  nameTheme();
});
nameTheme();

showTimes(document);
document.querySelector("[data-zone]").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
renewPage();
